"""The shared limits of models: permits in order over all processes, never more in a minute."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from app.db import Database, DatabaseClock, DatabaseUnavailable
from app.engine import ModelCall
from app.runs.execution.model_limits import ModelLimits
from app.runs.persistence.model_permits import ModelKey, ModelPermits

KEY, OTHER = ModelKey("openai/gpt-4o", "a"), ModelKey("openai/gpt-4o", "b")


class _Time:
    """The machine's time, which stands unless it is set."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def _permits(
    url: str, time: Callable[[], float], requests: int | None, tokens: int | None = None
) -> AsyncIterator[ModelPermits]:
    """The permits of a process of its own."""
    database = Database(url, DatabaseClock(time))
    permits = ModelPermits(database, requests, tokens)
    yield permits
    await permits.aclose()
    await database.aclose()


async def test_processes_get_permits_in_one_order(database_url: str) -> None:
    time = _Time()
    async with _permits(database_url, time, 60) as one, _permits(database_url, time, 60) as two:
        waits = [await permits.acquire(KEY, 1) for permits in (one, two) * 6]
        seconds = 60 / 54
        assert waits[:6] == pytest.approx([0.0] * 6, abs=1e-5)
        assert waits[6:] == pytest.approx([seconds * turn for turn in range(1, 7)], abs=1e-5)
        assert await one.acquire(OTHER, 1) == 0.0
        time.now += 60
        assert await two.acquire(KEY, 1) == 0.0


async def test_calls_that_wait_together_share_a_transaction(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    time, groups = _Time(), list[int]()
    apply = ModelPermits._apply

    async def counted(self: ModelPermits, connection: object, payloads: list[object]) -> object:
        groups.append(len(payloads))
        return await apply(self, connection, payloads)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelPermits, "_apply", counted)
    async with _permits(database_url, time, 600) as permits:
        waits = await asyncio.gather(*(permits.acquire(KEY, 1) for _ in range(200)))
    assert waits == sorted(waits)
    assert sum(groups) == 200
    assert len(groups) <= 3


@pytest.mark.parametrize("limit", [1, 3, 9, 10, 60, 500])
async def test_no_minute_has_more_requests_than_the_limit(database_url: str, limit: int) -> None:
    time, begins = _Time(), list[float]()
    async with _permits(database_url, time, limit) as permits:
        for step in range(3):
            acquired = (permits.acquire(KEY, 1) for _ in range(limit + 5))
            begins += [time.now + wait for wait in await asyncio.gather(*acquired)]
            time.now += (30, 100, 7)[step]
    begins.sort()
    in_a_minute = [sum(begin <= other < begin + 60 for other in begins) for begin in begins]
    assert 0.8 * limit <= max(in_a_minute) <= limit


async def test_tokens_are_limited_and_corrected_by_what_was_used(database_url: str) -> None:
    time = _Time()
    async with _permits(database_url, time, None, 6000) as permits:
        assert await permits.acquire(KEY, 3000) == 0.0
        wait = await permits.acquire(KEY, 100)
        assert wait == pytest.approx((3000 - 599) * 60 / 5400, abs=1e-5)
        permits.correct(KEY, -3100)  # both have used nothing
        assert await permits.acquire(KEY, 100) == 0.0
        permits.correct(KEY, 6000)
        assert await permits.acquire(KEY, 100) > 50


async def test_a_refusal_slows_every_process(database_url: str) -> None:
    time = _Time()
    async with _permits(database_url, time, 6000) as one, _permits(database_url, time, 6000) as two:
        one.pause(KEY, 12)
        await one.aclose()
        assert await two.acquire(KEY, 1) == pytest.approx(12)
        assert await two.acquire(OTHER, 1) == 0.0
        time.now += 13
        assert await one.acquire(KEY, 1) == 0.0


def _call(messages: str = "x" * 400, api_key: str = "secret") -> ModelCall:
    return ModelCall(
        task=None,
        within=None,
        model="openai/gpt-4o",
        provider="openai",
        messages=messages,
        tools=None,
        max_tokens=900,
        api_key=api_key,
    )


async def test_a_call_is_counted_by_its_estimate_and_then_by_what_it_used(
    database: Database,
) -> None:
    limits = ModelLimits(database, None, 1_000_000)
    seen: list[tuple[str, int]] = []
    limits._permits.correct = lambda key, tokens: seen.append(  # type: ignore[method-assign]
        (key.account, tokens)
    )
    call = _call()
    await limits.admit(call)
    assert call.waited > 0
    call.input_tokens, call.output_tokens = 120, 50
    limits.call_finished(call)
    failed = _call()
    await limits.admit(failed)
    limits.call_finished(failed)  # the model reported nothing: the estimate stays
    await asyncio.sleep(0)
    ((account, tokens),) = seen
    assert tokens == 170 - (100 + 900)
    assert len(account) == 16
    assert "secret" not in account
    assert not limits._estimates
    await limits.aclose()


async def test_a_refused_call_pauses_its_model(database: Database) -> None:
    limits, paused = ModelLimits(database, 1000, None), list[tuple[str, float]]()

    def pause(key: ModelKey, seconds: float) -> None:
        paused.append((key.model, seconds))

    limits._permits.pause = pause  # type: ignore[method-assign]
    call = _call()
    await limits.admit(call)
    assert call.on_refused is not None
    call.on_refused(7.5)
    elsewhere = _call()  # of a provider whose client is not the pool's
    elsewhere.error = _TooMany()
    limits.call_finished(elsewhere)
    await asyncio.sleep(0)
    assert paused == [("openai/gpt-4o", 7.5), ("openai/gpt-4o", 5.0)]
    await limits.aclose()


class _TooMany(Exception):
    status_code = 429


async def test_a_call_waits_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, attempts = ModelLimits(database, 1000, None), list[int]()
    acquire = limits._permits.acquire

    async def fail_once(key: ModelKey, tokens: int) -> float:
        attempts.append(tokens)
        if len(attempts) == 1:
            raise DatabaseUnavailable("away")
        return await acquire(key, tokens)

    monkeypatch.setattr(limits._permits, "acquire", fail_once)
    await limits.admit(_call())
    assert attempts == [1000, 1000]
    await limits.aclose()


async def test_a_cancelled_wait_keeps_no_memory(database: Database) -> None:
    limits = ModelLimits(database, 1, None)
    await limits.admit(_call())
    waiting = asyncio.ensure_future(limits.admit(_call()))
    await asyncio.sleep(0.05)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert len(limits._estimates) == 1
    await limits.aclose()
