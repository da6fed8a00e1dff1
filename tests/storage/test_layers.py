"""Time limits and injected faults around drivers."""

import asyncio
import time

import pytest

from storage import OutputNotFound, OutputUnavailable
from storage.drivers.memory import MemoryDriver
from storage.layers import Faults, Timeout
from tests.storage.sites import MEMORY_BYTES, key

NAME = str(key())
LIMIT_SECONDS = 0.2


@pytest.fixture
def faults() -> Faults:
    return Faults(MemoryDriver(MEMORY_BYTES))


@pytest.fixture
def limited(faults: Faults) -> Timeout:
    return Timeout(faults, LIMIT_SECONDS, list_seconds=LIMIT_SECONDS)


async def forever() -> None:
    await asyncio.Event().wait()


async def test_calls_without_an_answer_fail_in_time(limited: Timeout, faults: Faults) -> None:
    for operation in ("put", "get", "delete", "list"):
        faults.inject(operation, forever)
    began = time.monotonic()
    with pytest.raises(OutputUnavailable, match=rf"{NAME}.*no response for 0\.2 s"):
        await limited.put(NAME, b"text")
    with pytest.raises(OutputUnavailable, match=rf"{NAME}.*no response"):
        await limited.get(NAME)
    failures = await limited.delete([NAME, "other"])
    assert {name: type(error) for name, error in failures.items()} == {
        NAME: OutputUnavailable,
        "other": OutputUnavailable,
    }
    with pytest.raises(OutputUnavailable, match="no listing within"):
        await limited.list()
    assert time.monotonic() - began >= 4 * LIMIT_SECONDS


async def test_a_call_waits_on_while_others_are_answered(limited: Timeout, faults: Faults) -> None:
    """It stands in a line that moves."""
    go_on = asyncio.Event()

    async def stand_in_line() -> None:
        await go_on.wait()

    faults.inject("put", stand_in_line)
    waiting = asyncio.create_task(limited.put(NAME, b"text"))
    until = time.monotonic() + 3 * LIMIT_SECONDS
    while time.monotonic() < until:
        with pytest.raises(OutputNotFound):  # an answer, too
            await limited.get("other")
        await asyncio.sleep(LIMIT_SECONDS / 20)
    assert not waiting.done()
    go_on.set()
    await waiting
    assert await limited.get(NAME) == b"text"


async def test_failures_of_others_are_no_answers(limited: Timeout, faults: Faults) -> None:
    faults.inject("put", forever)
    faults.inject("get", OutputUnavailable("other", "memory", "injected"), times=10_000)
    waiting = asyncio.create_task(limited.put(NAME, b"text"))
    while not waiting.done():
        with pytest.raises(OutputUnavailable):
            await limited.get("other")
        await asyncio.sleep(LIMIT_SECONDS / 20)
    with pytest.raises(OutputUnavailable, match="no response"):
        await waiting


async def test_a_cancelled_call_is_cancelled_not_failed(limited: Timeout, faults: Faults) -> None:
    faults.inject("get", forever)
    call = asyncio.create_task(limited.get(NAME))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_faults_hit_the_given_number_of_calls_before_or_after_the_work(
    faults: Faults,
) -> None:
    error = OutputUnavailable(NAME, "memory", "injected")
    faults.inject("put", error, times=2)
    faults.inject("delete", error, after=True)
    for _ in range(2):
        with pytest.raises(OutputUnavailable):
            await faults.put(NAME, b"text")
    with pytest.raises(OutputNotFound):
        await faults.get(NAME)
    await faults.put(NAME, b"text")
    assert await faults.delete([NAME]) == {NAME: error}
    with pytest.raises(OutputNotFound):
        await faults.get(NAME)
    assert faults.calls == {"put": 3, "get": 2, "delete": 1}
