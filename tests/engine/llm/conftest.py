"""A stub model server, and models that talk to it: CrewAI's own and the same over a pool."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from crewai import LLM

from app.engine.llm.pool import HttpReply, ModelPool
from app.engine.llm.pooled import pooled_over
from app.engine.llm.retries import backoff_seconds
from tests.load.stub_model import StubModel, run_stub

SECRET = "sk-secret-0123456789abcdef"


@dataclass
class Server:
    """The stub's state, its address, and the pool under test."""

    stub: StubModel
    base_url: str
    pool: ModelPool

    def own(self, **settings: Any) -> LLM:
        """CrewAI's own model for this server."""
        settings = {"model": "openai/stub", "api_key": SECRET, "custom_openai": True} | settings
        return LLM(**{"base_url": self.base_url} | settings)

    def pooled(self, **settings: Any) -> LLM:
        """The same model over the pool."""
        own = self.own(**settings)
        model = pooled_over(own, self.pool)
        assert model is not own
        return model


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    stub = StubModel(delay_seconds=0, record=True)
    pool = ModelPool(timeout_seconds=10)
    async with run_stub(stub) as base_url:
        yield Server(stub, base_url, pool)
        await pool.aclose()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Retries come at once; the waits that would have been are in the list."""
    pauses: list[float] = []

    def pause(attempt: int, answer: HttpReply | None) -> float:
        pauses.append(backoff_seconds(attempt, answer))
        return 0.0

    monkeypatch.setattr("app.engine.llm.pool.backoff_seconds", pause)
    return pauses
