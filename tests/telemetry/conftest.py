"""Services whose traces arrive at a receiver."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from app.crews.registry import Registry
from app.engine import prepare_environment
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Running, Serve
from tests.telemetry.crews import CREWS, SECRET, respond
from tests.telemetry.otlp import Collector, Trace, collecting

prepare_environment()


class Traced:
    """A service whose traces arrive at `collector`, and its model."""

    def __init__(self, service: Running, collector: Collector, stub: StubModel) -> None:
        self.http = service.http
        self.service = service
        self.collector = collector
        self.stub = stub

    async def run(self, crew: str, *, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """Run a crew and wait for its end."""
        answer = await self.http.post(
            "/api/runs?wait=60",
            json={"crew": crew, "inputs": {"topic": SECRET}},
            headers=headers,
        )
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def trace_of(self, crew: str, **options: Any) -> Trace:
        """The trace of one run."""
        self.collector.spans.clear()
        self.collector.bodies.clear()
        await self.run(crew, **options)
        return await self.collector.until("POST /api/runs")


MakeTraced = Callable[..., AbstractAsyncContextManager[Traced]]


@pytest.fixture
def traced(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> MakeTraced:
    @asynccontextmanager
    async def start(
        environment: dict[str, str] | None = None, crews: Registry = CREWS, **settings: Any
    ) -> AsyncIterator[Traced]:
        stub = StubModel(delay_seconds=0.0, record=True, respond=respond)
        async with collecting() as collector, run_stub(stub) as url:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
            monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
            for name, value in (environment or {}).items():
                monkeypatch.setenv(name, value)
            model = {"llm_model": "openai/stub", "llm_base_url": url, "llm_api_key": "k"}
            async with serve(crews, **{**model, **settings}) as service:
                yield Traced(service, collector, stub)

    return start
