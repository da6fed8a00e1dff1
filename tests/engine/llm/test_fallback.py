"""A second model answers while the first one fails, and the first one returns."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from crewai.llms.base_llm import BaseLLM

from app.engine.llm import ModelFallback, ModelSettings, close_models, create_model
from tests.load.stub_model import Failure, StubModel, run_stub

MESSAGES = [{"role": "user", "content": "Current Task: cook for user-0123abcd"}]
AT_ONCE = {"retry-after": "0"}
DOWN = dict.fromkeys(range(1, 1000), Failure(status=500, headers=AT_ONCE))


@dataclass(frozen=True, slots=True)
class Pair:
    """A model whose server may fail, with a fallback after two failures."""

    first: StubModel
    second: StubModel
    model: BaseLLM
    fallback: ModelFallback

    async def call(self, method: str = "acall") -> Any:
        if method == "acall":
            return await self.model.acall(MESSAGES)
        return await asyncio.to_thread(self.model.call, MESSAGES)

    def end_pause(self) -> None:
        self.fallback._breaker._left_out_until = 0.0


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    first, second = StubModel(delay_seconds=0.0), StubModel(delay_seconds=0.0)
    async with run_stub(first) as first_url, run_stub(second) as second_url:
        other = create_model(ModelSettings(model="second", base_url=second_url))
        fallback = ModelFallback("openai/first", other, "openai/second", 2)
        model = create_model(ModelSettings(model="first", base_url=first_url), fallback=fallback)
        yield Pair(first, second, model, fallback)
        await close_models()


@pytest.mark.parametrize("method", ["acall", "call"])
async def test_a_failed_call_is_answered_by_the_second_model(pair: Pair, method: str) -> None:
    pair.first.failures = dict(DOWN)
    assert "user-0123abcd" in await pair.call(method)
    assert (pair.first.calls, pair.second.calls) == (3, 1)  # after its retries


async def test_a_model_that_keeps_failing_is_left_out_and_tried_again(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.first.failures = dict(DOWN)
    for _ in range(5):
        await pair.call()
    assert (pair.first.calls, pair.second.calls) == (6, 5)
    assert "The model openai/first is left out until it responds again" in caplog.text
    pair.end_pause()
    await asyncio.gather(*(pair.call() for _ in range(5)))
    assert (pair.first.calls, pair.second.calls) == (9, 10)  # one trial, which failed
    pair.first.failures = {}
    await pair.call()
    assert pair.first.calls == 9  # another pause
    pair.end_pause()
    for _ in range(3):
        await pair.call()
    assert (pair.first.calls, pair.second.calls) == (12, 11)


async def test_failures_count_in_a_row_only(pair: Pair) -> None:
    failed = Failure(status=500, headers=AT_ONCE)
    pair.first.failures = dict.fromkeys((1, 2, 3, 5, 6, 7), failed)
    for _ in range(5):
        await pair.call()
    assert (pair.first.calls, pair.second.calls) == (9, 2)


@pytest.mark.parametrize("failure", [Failure("drop"), Failure(status=429, headers=AT_ONCE)])
async def test_lost_connections_and_refusals_are_failures(pair: Pair, failure: Failure) -> None:
    pair.first.failures = dict.fromkeys(range(1, 10), failure)
    assert await pair.call()
    assert pair.second.calls == 1


async def test_an_error_of_the_request_is_raised(pair: Pair) -> None:
    pair.first.failures = dict.fromkeys(range(1, 10), Failure(status=400))
    for _ in range(3):
        with pytest.raises(Exception, match="planned failure"):
            await pair.call()
    assert (pair.first.calls, pair.second.calls) == (3, 0)


def test_only_a_pooled_model_can_have_a_fallback(pair: Pair) -> None:
    with pytest.raises((ValueError, ImportError)):
        create_model(ModelSettings(model="anthropic/x", api_key="k"), fallback=pair.fallback)
