"""The order of waiting runs: priorities within an owner, and times before which none begins."""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import update

from app.access.callers import OPERATOR, Caller, Quota
from app.db import Database
from app.runs.errors import InvalidInput, LimitReached
from app.runs.execution.fair_slots import FairSlots
from app.runs.models import UserRun
from app.runs.records import DispatchedRun, RunOptions, RunStatus
from storage import OutputStore
from tests.runs.scripted import Parts, Stage, running_service, succeed, until

INPUTS = {"topic": "rain"}
LATER = timedelta(hours=1)


async def test_an_owners_runs_get_slots_by_priority_and_owners_in_turn() -> None:
    slots, begun = FairSlots(1), list[str]()

    async def run(name: str, owner: str, priority: int) -> None:
        async with slots.slot(owner, priority):
            begun.append(name)

    async with slots.slot("x"), asyncio.TaskGroup() as waiting:
        for name, owner, priority in (
            ("a0", "a", 0),
            ("a-1", "a", -1),
            ("b0", "b", 0),
            ("a5", "a", 5),
            ("a5 again", "a", 5),
            ("b9", "b", 9),
        ):
            waiting.create_task(run(name, owner, priority))
        await asyncio.sleep(0)
        slots.release("x")
        await until(lambda: _length(begun, 6))
        await slots.acquire("x")
    assert begun == ["a5", "b9", "a5 again", "b0", "a0", "a-1"]


async def _length(items: list[str], length: int) -> bool:
    return len(items) == length


async def test_a_cancelled_wait_of_any_priority_keeps_no_memory() -> None:
    slots = FairSlots(1)
    async with slots.slot("x"):
        tasks = [asyncio.create_task(slots.acquire("a", priority)) for priority in (1, 2, 2)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not slots._waiting
    assert slots.used == 0


class _Order:
    """A script that notes the topics of its runs as they begin, and lets the first one wait."""

    def __init__(self) -> None:
        self.begun: list[object] = []
        self.open = asyncio.Event()

    async def __call__(self, inputs: Mapping[str, object], stage: Stage) -> None:
        self.begun.append(inputs["topic"])
        await self.open.wait()
        await succeed(inputs, stage)


async def test_waiting_runs_of_an_owner_begin_by_priority(
    database: Database, store: OutputStore
) -> None:
    order = _Order()
    async with running_service(database, store, order, max_in_flight=1) as parts:
        submitted = []
        for topic, priority in (("first", 0), ("low", -5), ("normal", 0), ("high", 5)):
            options = RunOptions(priority=priority)
            run = await parts.runs.submit("poem", {"topic": topic}, OPERATOR, options)
            assert run.priority == priority
            submitted.append(run)
        await until(lambda: _begun(order, 1))
        order.open.set()
        ended = [await parts.runs.wait(run, OPERATOR) for run in submitted]
        assert [run.priority for run in ended] == [0, -5, 0, 5]
        assert (await parts.runs.get(ended[1].run_id, OPERATOR)).priority == -5
    assert order.begun == ["first", "high", "normal", "low"]


async def _begun(order: _Order, count: int) -> bool:
    return len(order.begun) == count


async def test_stalled_runs_of_an_owner_are_dispatched_by_priority(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _never, max_in_flight=1) as stopped:
        for topic, priority in (("low", -5), ("normal", 0), ("high", 5)):
            options = RunOptions(priority=priority)
            await stopped.runs.submit("poem", {"topic": topic}, OPERATOR, options)
        await stopped.stop(0)
        stalled = await stopped.queries.stalled(["poem"], 10)
    assert [run.priority for run in stalled] == [5, 0, -5]


async def _never(_: Mapping[str, object], __: Stage) -> None:
    await asyncio.Event().wait()


async def _deferred(parts: Parts, delay: timedelta = LATER) -> UUID:
    options = RunOptions(not_before=parts.rows.now() + delay)
    run = await parts.runs.submit("poem", INPUTS, OPERATOR, options)
    assert run.status is RunStatus.QUEUED
    assert run.not_before == options.not_before
    return run.run_id


async def _let_time_pass(database: Database) -> None:
    """Make the time of all deferred runs come."""
    async with database.write() as connection:
        past = database.clock.now() - timedelta(seconds=1)
        changes = update(UserRun).where(UserRun.status == "queued")
        await connection.execute(changes.values(not_before=past, lease_until=past))


async def test_a_deferred_run_waits_without_a_worker_and_then_runs_once(
    database: Database, store: OutputStore
) -> None:
    order = _Order()
    order.open.set()
    async with running_service(database, store, order) as first:
        run_id = await _deferred(first)
        assert run_id not in first.worker
        assert (await first.queries.backlog()).runs[RunStatus.QUEUED] == 0
        await first.recover()
        assert run_id not in first.worker
        # A dispatch before its time claims nothing.
        first.worker.dispatch(DispatchedRun(run_id, "", "poem"))
        assert await first.worker.wait(run_id) is None
        await first.stop(0)
    async with (
        running_service(database, store, order) as second,
        running_service(database, store, order) as third,
    ):
        await second.recover()
        assert (await second.runs.get(run_id, OPERATOR)).status is RunStatus.QUEUED
        assert order.begun == []
        await _let_time_pass(database)
        assert (await second.queries.backlog()).runs[RunStatus.QUEUED] == 1
        await asyncio.gather(second.recover(), third.recover())

        async def is_settled() -> bool:
            return (await second.runs.get(run_id, OPERATOR)).is_settled

        await until(is_settled)
        run = await second.runs.get(run_id, OPERATOR)
    assert (run.status, run.attempt) == (RunStatus.SUCCEEDED, 1)
    assert run.waited_seconds is not None
    assert run.waited_seconds < 3600
    assert order.begun == ["rain"]


async def test_the_dispatcher_wakes_when_the_next_run_may_begin(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, succeed) as parts:
        run_id = await _deferred(parts, timedelta(seconds=0.3))
        parts.stalled_runs.interval_seconds = 3600
        parts.stalled_runs.start()

        async def is_settled() -> bool:
            return (await parts.runs.get(run_id, OPERATOR)).is_settled

        await until(is_settled)
        await parts.stalled_runs.aclose()
        run = await parts.runs.get(run_id, OPERATOR)
    assert run.started_at is not None
    assert run.not_before is not None
    assert run.started_at >= run.not_before


async def test_a_deferred_run_is_cancelled_and_its_retry_waits_for_its_time(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, succeed) as parts:
        run_id = await _deferred(parts)
        await parts.runs.cancel(run_id, OPERATOR)
        run = await parts.runs.get(run_id, OPERATOR)
        assert (run.status, run.attempt) == (RunStatus.CANCELLED, 0)
        await parts.runs.retry(run_id, OPERATOR)
        assert run_id not in parts.worker
        await parts.recover()
        assert (await parts.runs.get(run_id, OPERATOR)).status is RunStatus.QUEUED
        await _let_time_pass(database)
        await parts.recover()
        await parts.wait(run_id, OPERATOR)
        assert (await parts.runs.get(run_id, OPERATOR)).status is RunStatus.SUCCEEDED


async def test_a_deferred_run_counts_towards_the_runs_of_its_caller(
    database: Database, store: OutputStore
) -> None:
    caller = Caller("anna", is_admin=False, quota=Quota(runs_in_flight=1))
    async with running_service(database, store, succeed) as parts:
        options = RunOptions(not_before=parts.rows.now() + LATER)
        run = await parts.runs.submit("poem", INPUTS, caller, options)
        with pytest.raises(LimitReached):
            await parts.runs.submit("poem", INPUTS, caller)
        await parts.runs.cancel(run.run_id, caller)
        await parts.runs.submit("poem", INPUTS, caller)


async def test_a_time_that_has_passed_delays_nothing(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, succeed) as parts:
        options = RunOptions(not_before=parts.rows.now() - LATER)
        run = await parts.runs.submit("poem", INPUTS, OPERATOR, options)
        assert (await parts.runs.wait(run, OPERATOR)).status is RunStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (RunOptions(priority=101), "priority: 101; must be from -100 to 100"),
        (RunOptions(priority=-101), "priority: -101; must be from -100 to 100"),
    ],
)
async def test_a_priority_out_of_bounds_is_refused(
    database: Database, store: OutputStore, options: RunOptions, error: str
) -> None:
    async with running_service(database, store, succeed) as parts:
        with pytest.raises(InvalidInput, match=error):
            await parts.runs.submit("poem", INPUTS, OPERATOR, options)


async def test_a_time_too_far_in_the_future_is_refused(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, succeed) as parts:
        options = RunOptions(not_before=parts.rows.now() + timedelta(days=367))
        with pytest.raises(InvalidInput, match="not_before: must be within 366 days"):
            await parts.runs.submit("poem", INPUTS, OPERATOR, options)
