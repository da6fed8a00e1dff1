"""A run sends no traces to CrewAI's platform, whatever its crew or flow says."""

import logging
from typing import Any

import pytest
from crewai import Crew
from crewai.flow.flow import Flow, start
from crewai.telemetry.tracing import ephemeral

from app.engine import Engine
from app.engine.engine import EngineMode
from tests.engine.crews import INPUTS, two
from tests.engine.recording import RecordingLLM, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _TracedFlow(Flow[dict[str, Any]]):
    tracing: bool | None = True

    @start()
    def begin(self) -> str:
        crew = two(crew_options={"tracing": True})(RecordingLLM())
        return str(crew.kickoff(INPUTS).raw)


def _traced_crew() -> Crew:
    return two(crew_options={"tracing": True})(RecordingLLM())


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
@pytest.mark.parametrize("build", [_traced_crew, _TracedFlow])
async def test_a_traced_run_collects_nothing(
    mode: EngineMode,
    build: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sessions: list[Any] = []
    monkeypatch.setattr(ephemeral, "ephemeral_tracing", lambda *args, **_: sessions.append(args))
    caplog.set_level(logging.INFO, "crewai")
    engine = Engine(model=RecordingLLM(), mode=mode, max_stock_threads=1)
    try:
        await engine.start([Source("crew", build)])
        assert (await engine.run("crew", INPUTS)).raw
    finally:
        await engine.aclose()
    assert sessions == []
    assert "ephemeral" not in caplog.text.lower()
