"""Services that share the runs of one database by a queue."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from app.access.callers import OPERATOR, Caller
from app.db import Database
from app.runs.background import PeriodicService
from app.runs.errors import Overloaded, RunMoved
from app.runs.execution.consumer import QueueConsumer
from app.runs.execution.dispatch import QueueDispatcher
from app.runs.queue.base import Hint, RunQueue
from app.runs.queue.in_process import InProcessBroker, InProcessDriver
from app.runs.records import QUEUE, ClaimedRun, DispatchedRun, RunOptions, RunStatus
from storage import OutputStore
from tests.runs.scripted import Parts, Stage, running_service, succeed, until

INPUTS = {"topic": "rain"}


class Machines:
    """Starts services that share one database, store and broker."""

    def __init__(self, database: Database, store: OutputStore) -> None:
        self.broker = InProcessBroker()
        self._database = database
        self._store = store

    @asynccontextmanager
    async def machine(self, script: Any = succeed, **options: Any) -> AsyncIterator[Parts]:
        """A service that accepts runs and dispatches them; `start` makes it receive some, too."""
        queue = RunQueue(InProcessDriver(self.broker))
        await queue.start()
        async with aclosing(queue), AsyncExitStack() as stack:
            parts = await stack.enter_async_context(
                running_service(self._database, self._store, script, queue=queue, **options)
            )
            assert isinstance(parts.dispatcher, QueueDispatcher)
            PeriodicService.start(parts.dispatcher)  # without its consumer
            stack.push_async_callback(parts.dispatcher.aclose)
            yield parts


class Recording:
    """The script of a crew that succeeds, with the topics of the runs that began."""

    def __init__(self) -> None:
        self.began: list[object] = []

    async def __call__(self, inputs: Mapping[str, object], stage: Stage) -> None:
        self.began.append(inputs["topic"])
        await succeed(inputs, stage)


def start(parts: Parts) -> None:
    consumer(parts).start()


def consumer(parts: Parts) -> QueueConsumer:
    assert isinstance(parts.dispatcher, QueueDispatcher)
    assert parts.dispatcher.consumer is not None
    return parts.dispatcher.consumer


@pytest.fixture
def machines(database: Database, store: OutputStore) -> Machines:
    return Machines(database, store)


def caller(owner: str) -> Caller:
    return Caller(owner, is_admin=False)


async def settled(parts: Parts, *run_ids: UUID) -> list[RunStatus]:
    """The statuses of the runs once all are settled."""

    async def all_settled() -> bool:
        return not await parts.queries.unsettled(run_ids)

    await until(all_settled, 240)
    runs = [await parts.queries.get(run_id) for run_id in run_ids]
    return [run.status for run in runs if run is not None]


async def test_a_run_is_executed_by_another_process_than_accepted_it(machines: Machines) -> None:
    here, there = Recording(), Recording()
    async with machines.machine(here) as accepting, machines.machine(there) as working:
        start(working)
        run = await accepting.runs.submit("poem", INPUTS, OPERATOR)
        assert await settled(accepting, run.run_id) == [RunStatus.SUCCEEDED]
        assert (here.began, there.began) == ([], ["rain"])


async def test_runs_are_shared_and_each_is_executed_once(machines: Machines) -> None:
    script = Recording()
    async with (
        machines.machine() as accepting,
        machines.machine(script, max_in_flight=5) as one,
        machines.machine(script, max_in_flight=5) as other,
    ):
        start(one)
        start(other)
        run_ids = [await accepting.submit("poem", INPUTS, OPERATOR) for _ in range(60)]
        assert await settled(accepting, *run_ids) == [RunStatus.SUCCEEDED] * 60
        attempts = [await accepting.queries.get(run_id) for run_id in run_ids]
        assert {run.attempt for run in attempts if run} == {1}
        assert len(script.began) == 60


async def test_the_caller_waits_for_a_run_of_another_process(machines: Machines) -> None:
    async with machines.machine() as accepting, machines.machine() as working:
        start(working)
        accepting.peer_poller.start()
        ended = await accepting.run("poem", INPUTS, OPERATOR)
        assert ended.status is RunStatus.SUCCEEDED
        assert ended.outputs


async def test_a_caller_that_waits_is_released_when_the_accepting_process_stops(
    machines: Machines,
) -> None:
    async with machines.machine() as accepting:
        run = await accepting.runs.submit("poem", INPUTS, OPERATOR)
        waiting = asyncio.create_task(accepting.runs.wait(run, OPERATOR))

        async def is_subscribed() -> bool:
            return bool(accepting.events.subscribed_runs())

        await until(is_subscribed)
        accepting.events.close()
        with pytest.raises(RunMoved):
            await waiting


async def test_a_hint_of_a_run_that_another_process_claimed_is_dropped(
    machines: Machines,
) -> None:
    script = Recording()
    async with machines.machine() as accepting, machines.machine(script) as working:
        start(working)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await settled(accepting, run_id)
        assert isinstance(accepting.dispatcher, QueueDispatcher)
        accepting.dispatcher.dispatch(DispatchedRun(run_id, "", "poem"))
        later = await accepting.submit("poem", INPUTS, OPERATOR)
        await settled(accepting, later)
        assert len(script.began) == 2


async def test_runs_wait_in_the_database_while_the_broker_is_away(machines: Machines) -> None:
    async with machines.machine() as accepting, machines.machine() as working:
        start(working)
        machines.broker.stop()
        run_ids = [await accepting.submit("poem", INPUTS, OPERATOR) for _ in range(5)]
        assert await accepting.statuses() == [RunStatus.QUEUED] * 5
        machines.broker.restart(is_empty=True)
        assert await settled(accepting, *run_ids) == [RunStatus.SUCCEEDED] * 5


async def test_hints_that_the_broker_loses_are_published_again(machines: Machines) -> None:
    async with machines.machine() as accepting, machines.machine() as working:
        run_ids = [await accepting.submit("poem", INPUTS, OPERATOR) for _ in range(5)]

        async def all_published() -> bool:
            return machines.broker.waiting("poem") == 5

        await until(all_published)
        machines.broker.stop()
        machines.broker.restart(is_empty=True)
        start(working)
        assert await settled(accepting, *run_ids) == [RunStatus.SUCCEEDED] * 5


async def test_runs_in_hand_continue_during_an_outage(machines: Machines) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await go_on.wait()
        await succeed(inputs, stage)

    async with machines.machine() as accepting, machines.machine(script) as working:
        start(working)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        machines.broker.stop()
        go_on.set()
        assert await settled(accepting, run_id) == [RunStatus.SUCCEEDED]


async def test_runs_of_a_lost_worker_are_dispatched_again(
    machines: Machines, database: Database
) -> None:
    begun = asyncio.Event()

    async def hang(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with machines.machine() as accepting, machines.machine(hang) as lost:
        start(lost)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        await consumer(lost).aclose()
        await lost.rows.release()  # as if its lease had ended
        async with machines.machine() as working:
            start(working)
            assert await settled(accepting, run_id) == [RunStatus.SUCCEEDED]
            run = await accepting.queries.get(run_id)
            assert run is not None
            assert run.attempt == 2


async def test_a_worker_with_all_slots_used_leaves_runs_to_others(machines: Machines) -> None:
    go_on = asyncio.Event()

    async def wait(inputs: Mapping[str, object], stage: Stage) -> None:
        await go_on.wait()
        await succeed(inputs, stage)

    async with machines.machine() as accepting, machines.machine(wait, max_in_flight=2) as full:
        start(full)
        first = [await accepting.submit("poem", INPUTS, OPERATOR) for _ in range(2)]

        async def is_full() -> bool:
            return full.worker.slots.used == 2

        await until(is_full)
        async with machines.machine() as working:
            start(working)
            others = [await accepting.submit("poem", INPUTS, OPERATOR) for _ in range(6)]
            assert await settled(accepting, *others) == [RunStatus.SUCCEEDED] * 6
        go_on.set()
        assert await settled(accepting, *first) == [RunStatus.SUCCEEDED] * 2


async def test_a_worker_claims_little_ahead_of_the_runs_that_begin(machines: Machines) -> None:
    go_on = asyncio.Event()

    async def never(inputs: Mapping[str, object], stage: Stage) -> None:
        await asyncio.Event().wait()

    async with (
        machines.machine(max_queued=400) as one,
        machines.machine(never, max_in_flight=300) as working,
    ):
        claim = working.rows.claim

        async def claim_later(run_id: UUID) -> ClaimedRun | None:
            await go_on.wait()
            return await claim(run_id)

        working.rows.claim = claim_later  # type: ignore[method-assign]
        start(working)
        await one.runs.submit_many("poem", [INPUTS] * 400, OPERATOR)

        async def is_paced() -> bool:
            return len(working.worker) > 96

        await until(is_paced, 60)
        waiting = asyncio.create_task(working.worker.free_slots("poem"))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert len(working.worker) <= 128
        go_on.set()
        await waiting

        async def is_full() -> bool:
            return len(working.worker) == 300

        await until(is_full)
        working.engine.script = succeed


async def test_runs_of_a_lost_worker_do_not_wait_until_others_begin(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(inputs: Mapping[str, object], stage: Stage) -> None:
        await asyncio.Event().wait()

    async def no_turn() -> None:
        await asyncio.Event().wait()

    async with machines.machine() as accepting, machines.machine(never, max_in_flight=200) as lost:
        start(lost)
        await accepting.runs.submit_many("poem", [INPUTS] * 200, OPERATOR)

        async def all_begun() -> bool:
            return len(lost.worker.executed_runs) == 200

        await until(all_begun, 60)
        await consumer(lost).aclose()
        monkeypatch.setattr("app.runs.execution.worker.turn", no_turn)
        async with machines.machine(never, max_in_flight=200) as working:
            await lost.rows.release()  # as if its leases had ended
            start(working)

            async def all_claimed() -> bool:
                return len(working.worker) == 200

            await until(all_claimed, 60)


async def test_turns_rotate_between_owners_over_all_accepting_processes(machines: Machines) -> None:
    script = Recording()
    crowd, other = caller("crowd"), caller("other")
    async with (
        machines.machine(max_queued=2000) as one,
        machines.machine(max_queued=2000) as two,
        machines.machine(script, max_in_flight=2) as working,
    ):
        for parts in (one, two):
            await parts.runs.submit_many("poem", [{"topic": "crowd"}] * 300, crowd)
        start(working)
        await settled(one, await two.submit("poem", {"topic": "other"}, other))
        # Ids that were published before it, from the first window of each process, are ahead.
        assert script.began.index("other") < 300


async def test_priorities_hold_over_all_processes(machines: Machines) -> None:
    script = Recording()
    async with machines.machine(max_queued=2000) as one, machines.machine(script) as working:
        await one.runs.submit_many("poem", [{"topic": "low"}] * 400, OPERATOR)
        urgent = await one.submit("poem", {"topic": "high"}, OPERATOR, RunOptions(priority=5))
        start(working)
        await settled(one, urgent)
        assert script.began.index("high") < 200


async def test_a_deferred_run_begins_at_its_time(machines: Machines) -> None:
    async with machines.machine() as accepting, machines.machine() as working:
        start(working)
        time = datetime.now(UTC) + timedelta(seconds=1.5)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR, RunOptions(not_before=time))
        assert await settled(accepting, run_id) == [RunStatus.SUCCEEDED]
        run = await accepting.queries.get(run_id)
        assert run is not None
        assert run.started_at is not None
        assert run.started_at >= time


async def test_the_backlog_of_all_processes_is_limited(machines: Machines) -> None:
    async with (
        machines.machine(max_in_flight=1, max_queued=99) as one,
        machines.machine(max_in_flight=1, max_queued=99) as two,
    ):
        machines.broker.stop()
        await one.runs.submit_many("poem", [INPUTS] * 100, OPERATOR)

        async def is_known() -> bool:
            return one.dispatcher.load == two.dispatcher.load == 100

        await until(is_known)
        for parts in (one, two):
            with pytest.raises(Overloaded):
                await parts.submit("poem", INPUTS, OPERATOR)
        machines.broker.restart(is_empty=True)


async def test_a_cancelled_run_is_not_executed(machines: Machines) -> None:
    script = Recording()
    async with machines.machine() as accepting, machines.machine(script) as working:
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await accepting.runs.cancel(run_id, OPERATOR)
        start(working)
        later = await accepting.submit("poem", INPUTS, OPERATOR)
        assert await settled(accepting, run_id, later) == [
            RunStatus.CANCELLED,
            RunStatus.SUCCEEDED,
        ]
        assert len(script.began) == 1


async def test_a_hint_of_a_run_that_a_live_worker_holds_changes_nothing(
    machines: Machines,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        begun.set()
        await go_on.wait()
        await succeed(inputs, stage)

    async with (
        machines.machine() as accepting,
        machines.machine(script) as holder,
        machines.machine() as other,
    ):
        start(holder)
        run_id = await accepting.submit("poem", INPUTS, OPERATOR)
        await begun.wait()
        queue = RunQueue(InProcessDriver(machines.broker))
        await queue.start()
        await consumer(holder).aclose()
        start(other)
        await queue.publish([Hint(run_id, "poem")])

        async def is_dropped() -> bool:
            return not machines.broker.waiting("poem") and not len(other.worker)

        await until(is_dropped)
        go_on.set()
        assert await settled(accepting, run_id) == [RunStatus.SUCCEEDED]
        run = await accepting.queries.get(run_id)
        assert run is not None
        assert run.attempt == 1
        assert QUEUE not in await accepting.statuses()
        await queue.aclose()
