"""A cancelled run that waits for a slot is neither dispatched nor counted any more."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

import pytest

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.errors import Overloaded
from app.runs.execution.fair_slots import FairSlots
from storage import OutputStore
from tests.runs.scripted import Parts, Stage, running_service, until

INPUTS = {"topic": "rain"}


class _Busy:
    """A full service: one run executes until `go_on`, one waits."""

    def __init__(self, parts: Parts, executing: UUID, waiting: UUID, go_on: asyncio.Event) -> None:
        self.parts = parts
        self.executing = executing
        self.waiting = waiting
        self.go_on = go_on


@asynccontextmanager
async def _busy(database: Database, store: OutputStore) -> AsyncIterator[_Busy]:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script(_: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await go_on.wait()
        await stage.finish_all("text")

    async with running_service(database, store, script, max_in_flight=1, max_queued=1) as parts:
        executing = await parts.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        waiting = await parts.submit("poem", INPUTS, OPERATOR)
        with pytest.raises(Overloaded):
            await parts.submit("poem", INPUTS, OPERATOR)
        yield _Busy(parts, executing, waiting, go_on)
        go_on.set()


async def _cancel_in_another_process(
    database: Database, store: OutputStore, *run_ids: UUID, delete: bool
) -> None:
    async with running_service(database, store) as peer:
        for run_id in run_ids:
            await peer.runs.cancel(run_id, OPERATOR)
            if delete:
                await peer.runs.delete(run_id, OPERATOR)


async def test_it_no_longer_counts_and_another_is_accepted(
    database: Database, store: OutputStore
) -> None:
    async with _busy(database, store) as busy:
        parts = busy.parts
        ended = asyncio.create_task(parts.wait(busy.waiting, OPERATOR))
        await parts.runs.cancel(busy.waiting, OPERATOR)
        assert parts.worker.run_ids == {busy.executing}
        assert (await ended).status == "cancelled"
        next_run = await parts.submit("poem", INPUTS, OPERATOR)
        assert len(parts.worker) == 2
        busy.go_on.set()
        assert (await parts.wait(next_run, OPERATOR)).status == "succeeded"


async def test_another_process_cancels_it(database: Database, store: OutputStore) -> None:
    async with _busy(database, store) as busy:
        await _cancel_in_another_process(database, store, busy.waiting, delete=False)
        await busy.parts.peer_poller.run_once()
        assert busy.parts.worker.run_ids == {busy.executing}


async def test_another_process_cancels_and_deletes_it(
    database: Database, store: OutputStore
) -> None:
    """A run that executes ends then, too, though its row is gone."""
    async with _busy(database, store) as busy:
        worker = busy.parts.worker
        runs = (busy.waiting, busy.executing)
        await _cancel_in_another_process(database, store, *runs, delete=True)
        await busy.parts.stalled_runs.run_once()
        assert worker.run_ids <= {busy.executing}

        async def ended() -> bool:
            return not len(worker)

        await until(ended)


async def test_a_cancelled_turn_is_kept_nowhere() -> None:
    slots = FairSlots(1)
    await slots.acquire("a")
    waiting = [asyncio.create_task(slots.acquire(owner)) for owner in "abab"]
    await asyncio.sleep(0)
    for task in waiting[:3]:
        task.cancel()
    await asyncio.gather(*waiting[:3], return_exceptions=True)
    assert [len(queue) for queue in slots._waiting.values()] == [1]
    slots.release("a")
    await waiting[3]
