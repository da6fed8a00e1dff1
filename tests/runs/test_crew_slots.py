"""Slots of crews over processes: each CrewSlots of a test stands for a process."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from typing import Protocol
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from app.db import Database
from app.runs.models import CrewSlotRow
from app.runs.persistence.crew_slots import CrewSlots

LIMITS = {"poem": 2, "song": 1}


class Open(Protocol):
    """Opens the slots of a process."""

    async def __call__(self, worker: str, lease_seconds: float = 60) -> CrewSlots: ...


@pytest.fixture
async def process(database: Database) -> AsyncIterator[Open]:
    """Processes on one database, until the end of the test."""
    async with AsyncExitStack() as stack:

        async def start(worker: str, lease_seconds: float = 60) -> CrewSlots:
            slots = CrewSlots(database, LIMITS, worker=worker, lease_seconds=lease_seconds)
            return await stack.enter_async_context(aclosing(slots))

        yield start


async def test_the_limit_counts_over_processes_and_for_each_crew(process: Open) -> None:
    one, two = await process("one"), await process("two")
    assert await one.acquire("poem", uuid4())
    assert await two.acquire("poem", uuid4())
    assert not await one.acquire("poem", uuid4())
    assert not await two.acquire("poem", uuid4())
    assert await two.acquire("song", uuid4())
    assert not await one.acquire("song", uuid4())


async def test_slots_are_given_in_the_order_of_requests(process: Open) -> None:
    one, two = await process("one"), await process("two")
    holder, first, second = uuid4(), uuid4(), uuid4()
    assert await one.acquire("song", holder)
    assert not await two.acquire("song", first)
    assert not await one.acquire("song", second)
    one.release("song", holder)
    assert not await one.acquire("song", second)
    assert await two.acquire("song", first)
    two.release("song", first)
    await two.aclose()
    assert await one.acquire("song", second)


async def test_a_request_may_be_repeated(process: Open, database: Database) -> None:
    one = await process("one")
    run_id = uuid4()
    assert await one.acquire("song", run_id)
    assert await one.acquire("song", run_id)
    one.release("song", run_id)
    one.release("song", run_id)
    await one.aclose()
    assert await _rows(database) == {}


async def test_a_run_that_stops_waiting_leaves_its_position(process: Open) -> None:
    one, two = await process("one"), await process("two")
    holder, gone, next_one = uuid4(), uuid4(), uuid4()
    assert await one.acquire("song", holder)
    assert not await one.acquire("song", gone)
    assert not await two.acquire("song", next_one)
    one.release("song", gone)
    one.release("song", holder)
    await one.aclose()
    assert await two.acquire("song", next_one)


async def test_slots_of_a_lost_process_end_with_their_lease(
    process: Open, database: Database
) -> None:
    lost, other = await process("lost", lease_seconds=-1), await process("other")
    run_id, next_one = uuid4(), uuid4()
    assert await lost.acquire("song", run_id)
    assert await other.acquire("song", next_one)
    assert await _rows(database) == {next_one: "other"}
    lost.release("song", next_one)  # it is not this process's
    await lost.aclose()
    assert await _rows(database) == {next_one: "other"}


async def test_a_renewed_slot_stays(process: Open) -> None:
    alive, other = await process("alive", lease_seconds=-1), await process("other")
    assert await alive.acquire("song", uuid4())
    await (await process("alive")).renew()
    assert not await other.acquire("song", uuid4())


async def test_a_run_that_another_process_has_in_hand_gets_no_slot(process: Open) -> None:
    one, two = await process("one"), await process("two")
    run_id = uuid4()
    assert await one.acquire("poem", run_id)
    assert not await two.acquire("poem", run_id)
    one.release("poem", run_id)
    await one.aclose()
    assert await two.acquire("poem", run_id)


async def _rows(database: Database) -> dict[UUID, str]:
    async with database.read() as connection:
        rows = await connection.execute(select(CrewSlotRow.run_id, CrewSlotRow.worker))
        return {row.run_id: row.worker for row in rows}
