"""Fair turns: one who queues thousands of runs does not hold up another's first."""

import asyncio
from collections.abc import Mapping

from app.access.callers import Caller
from app.db import Database
from app.runs.execution.fair_slots import FairSlots
from storage import OutputStore
from tests.runs.scripted import Stage, running_service, until

MANY, ONE = Caller("many", is_admin=False), Caller("one", is_admin=False)


async def _runs(turns: FairSlots, owners: str) -> tuple[list[str], list[asyncio.Task[None]]]:
    """Runs that wait, one for each letter, and the owners in the order of their turns."""
    begun: list[str] = []

    async def run(owner: str) -> None:
        await turns.acquire(owner)
        begun.append(owner)
        await asyncio.sleep(0)
        turns.release(owner)

    runs = [asyncio.create_task(run(owner)) for owner in owners]
    await asyncio.sleep(0)
    return begun, runs


async def test_owners_get_slots_in_turn_and_each_ones_runs_keep_their_order() -> None:
    turns = FairSlots(1)
    begun, runs = await _runs(turns, "aaaaabbc")
    await asyncio.gather(*runs)
    assert "".join(begun) == "aabcabaa"


async def test_the_end_users_of_an_owner_get_its_slots_in_turn() -> None:
    turns = FairSlots(1)
    begun: list[str] = []

    async def run(owner: str, end_user: str, priority: int = 0) -> None:
        await turns.acquire(owner, priority, end_user)
        begun.append(owner + end_user)
        await asyncio.sleep(0)
        turns.release(owner)

    waiting = [("a", "1")] * 3 + [("a", "2"), ("b", "1"), ("a", "3")]
    runs = [asyncio.create_task(run(*one)) for one in waiting]
    runs.append(asyncio.create_task(run("a", "4", 1)))
    await asyncio.sleep(0)
    runs[2].cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    assert begun == ["a1", "a4", "b1", "a1", "a2", "a3"]


async def test_as_many_run_at_once_as_there_are_slots() -> None:
    turns, running, most = FairSlots(3), 0, 0

    async def run(owner: str) -> None:
        nonlocal running, most
        await turns.acquire(owner)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        turns.release(owner)

    for _ in range(2):  # the second time with slots that were given back
        await asyncio.gather(*(run(owner) for owner in "abc" * 20))
        assert most == 3


async def test_a_run_that_gives_up_leaves_its_slot_to_another() -> None:
    for given_up in range(1, 6):
        turns = FairSlots(1)
        begun, runs = await _runs(turns, "abcabc")
        runs[given_up].cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        assert len(begun) == 5
        assert (await _runs(turns, "x"))[0] == ["x"]


async def test_a_run_that_gives_up_as_its_turn_comes_passes_the_slot_on() -> None:
    turns = FairSlots(1)
    await turns.acquire("a")
    begun, runs = await _runs(turns, "bc")
    turns.release("a")
    runs[0].cancel()  # its turn has come, but it has not heard of it
    await asyncio.gather(*runs, return_exceptions=True)
    assert begun == ["c"]


async def _brief(_: Mapping[str, object], stage: Stage) -> None:
    await asyncio.sleep(0.2)
    await stage.finish(0, "text")


async def test_another_users_first_run_starts_while_five_thousand_wait(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _brief, max_in_flight=4, max_queued=6000) as parts:
        for _ in range(5):
            await parts.runs.submit_many("poem", [{"topic": "rain"}] * 1000, MANY)
        run_id = await parts.submit("poem", {"topic": "snow"}, ONE)
        await parts.wait(run_id, ONE)
        assert len(parts.worker) > 4000
        parts.runs.accepting = False
        await parts.worker.drain(0)


async def test_another_users_stalled_run_is_claimed_before_five_thousand_older_ones(
    database: Database, store: OutputStore
) -> None:
    async with running_service(
        database, store, _brief, max_in_flight=4, max_queued=6000
    ) as stopped:
        stopped.engine.script = _never
        for _ in range(5):
            await stopped.runs.submit_many("poem", [{"topic": "rain"}] * 1000, MANY)
        run_id = await stopped.submit("poem", {"topic": "snow"}, ONE)
        await stopped.stop(0)
    async with running_service(database, store, _brief, max_in_flight=4, max_queued=6000) as parts:
        await parts.recover()

        async def is_settled() -> bool:
            return (await parts.runs.get(run_id, ONE)).finished_at is not None

        await until(is_settled)
        assert sum((await parts.queries.backlog()).runs.values()) > 4000
        parts.runs.accepting = False
        await parts.worker.drain(0)


async def _never(_: Mapping[str, object], stage: Stage) -> None:
    await asyncio.Event().wait()


async def test_the_last_slots_are_kept_for_owners_that_hold_few() -> None:
    turns = FairSlots(8, reserve=2)
    crowd = [asyncio.create_task(turns.acquire("crowd")) for _ in range(8)]
    await asyncio.sleep(0)
    assert [task.done() for task in crowd] == [True] * 6 + [False] * 2
    for owner in ("a", "b"):
        await asyncio.wait_for(turns.acquire(owner), 60)
    assert turns.free == 0
    turns.release("a")  # the crowd holds more than the reserve
    await asyncio.sleep(0)
    assert [task.done() for task in crowd] == [True] * 6 + [False] * 2
    for _ in range(3):
        turns.release("crowd")
    await asyncio.gather(*crowd)
    assert (turns.used, turns.free) == (6, 2)


async def test_an_unknown_owner_may_hold_all_slots() -> None:
    turns = FairSlots(8, reserve=2)
    for _ in range(8):
        await asyncio.wait_for(turns.acquire(""), 60)
    assert turns.free == 0


async def test_another_users_run_starts_while_a_crowd_of_long_runs_has_the_slots(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _never, max_in_flight=64, max_queued=6000) as parts:
        await parts.runs.submit_many("poem", [{"topic": "rain"}] * 100, MANY)
        run_id = await parts.submit("poem", {"topic": "snow"}, ONE)

        async def is_running() -> bool:
            return (await parts.runs.get(run_id, ONE)).started_at is not None

        await until(is_running)
        assert parts.worker.slots.used == 63
        parts.runs.accepting = False
        await parts.worker.drain(0)
