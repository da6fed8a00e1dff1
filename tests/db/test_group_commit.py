"""Group commits: few transactions, each change acknowledged after its own commit."""

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database, DatabaseUnavailable, GroupCommit


@pytest.fixture
async def table(database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE numbers (n INTEGER PRIMARY KEY)"))


async def _numbers(database: Database) -> list[int]:
    async with database.read() as connection:
        return list(await connection.scalars(text("SELECT n FROM numbers ORDER BY n")))


class _Insert:
    """Inserts a group of numbers, and records the size of each group."""

    def __init__(self) -> None:
        self.groups: list[int] = []

    async def __call__(self, connection: AsyncConnection, numbers: Sequence[int]) -> Sequence[int]:
        self.groups.append(len(numbers))
        await connection.execute(
            text("INSERT INTO numbers VALUES (:n)"), [{"n": n} for n in numbers]
        )
        return [n * 2 for n in numbers]


@pytest.mark.usefixtures("table")
async def test_changes_made_at_once_share_few_transactions(database: Database) -> None:
    insert, writes = _Insert(), GroupCommit(database)
    results = await asyncio.gather(*(writes.submit(insert, n) for n in range(300)))
    assert results == [n * 2 for n in range(300)]
    assert await _numbers(database) == list(range(300))
    assert len(insert.groups) < 10


@pytest.mark.usefixtures("table")
async def test_changes_that_follow_a_large_group_wait_for_each_other(database: Database) -> None:
    insert, writes = _Insert(), GroupCommit(database, max_pause_seconds=5.0)
    await asyncio.gather(*(writes.submit(insert, n) for n in range(400)))
    insert.groups.clear()
    early = asyncio.create_task(writes.submit(insert, 400))
    await asyncio.sleep(0.02)
    await asyncio.gather(early, writes.submit(insert, 401))
    assert insert.groups == [2]


@pytest.mark.usefixtures("table")
async def test_a_change_is_committed_before_it_is_acknowledged(database: Database) -> None:
    writes = GroupCommit(database)
    await writes.submit(_Insert(), 7)
    assert await _numbers(database) == [7]


@pytest.mark.usefixtures("table")
async def test_a_failing_change_does_not_fail_others_in_its_group(database: Database) -> None:
    insert, writes = _Insert(), GroupCommit(database)
    await writes.submit(insert, 5)
    results = await asyncio.gather(
        *(writes.submit(insert, n) for n in range(10)), return_exceptions=True
    )
    failed = [n for n, result in enumerate(results) if isinstance(result, Exception)]
    assert failed == [5]
    assert await _numbers(database) == list(range(10))


@pytest.mark.usefixtures("table")
async def test_a_failing_change_among_many_costs_few_transactions(database: Database) -> None:
    insert, writes = _Insert(), GroupCommit(database)
    await writes.submit(insert, 300)
    insert.groups.clear()
    results = await asyncio.gather(
        *(writes.submit(insert, n) for n in range(512)), return_exceptions=True
    )
    assert [n for n, result in enumerate(results) if isinstance(result, Exception)] == [300]
    assert await _numbers(database) == list(range(512))
    # Two for each bisection, and those of groups that had no failing change.
    assert len(insert.groups) <= 2 * 9 + 4


@pytest.mark.usefixtures("table")
async def test_a_cancelled_caller_does_not_delay_the_group(database: Database) -> None:
    insert, writes = _Insert(), GroupCommit(database)
    gone = asyncio.create_task(writes.submit(insert, 1))
    stays = asyncio.create_task(writes.submit(insert, 2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 4
    await writes.aclose()


async def test_an_unreachable_database_is_raised_to_every_caller() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/nothing")
    writes = GroupCommit(database)
    results = await asyncio.gather(
        *(writes.submit(_Insert(), n) for n in range(3)), return_exceptions=True
    )
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    await database.aclose()


@pytest.mark.usefixtures("table")
async def test_changes_are_acknowledged_in_the_order_of_their_submission(
    database: Database,
) -> None:
    one, other, writes = _Insert(), _Insert(), GroupCommit(database)
    committed: list[int] = []
    for number in range(10):
        writes.submit_soon(one if number % 2 else other, number, partial(committed.append, number))
    await writes.aclose()
    assert committed == list(range(10))


class _InsertOfAnAbsentDatabase(_Insert):
    """Fails as long as the database is `away`."""

    away = True

    async def __call__(self, connection: AsyncConnection, numbers: Sequence[int]) -> Sequence[int]:
        if self.away:
            raise DatabaseUnavailable("away")
        return await super().__call__(connection, numbers)


@pytest.mark.usefixtures("table")
async def test_a_change_without_a_waiting_caller_survives_an_outage(database: Database) -> None:
    insert, writes = _InsertOfAnAbsentDatabase(), GroupCommit(database)
    committed: list[int] = []
    for number in (1, 2):
        writes.submit_soon(insert, number, partial(committed.append, number))
    with pytest.raises(DatabaseUnavailable):
        await writes.submit(insert, 3)
    assert committed == []
    insert.away = False
    await writes.submit(insert, 4)
    assert committed == [1, 2]
    assert await _numbers(database) == [1, 2, 4]


@pytest.mark.usefixtures("table")
async def test_closing_retries_kept_changes_once(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    insert, writes = _InsertOfAnAbsentDatabase(), GroupCommit(database)
    committed: list[int] = []
    writes.submit_soon(insert, 1, partial(committed.append, 1))
    with pytest.raises(DatabaseUnavailable):
        await writes.submit(insert, 2)
    insert.away = False
    await writes.aclose()
    assert await _numbers(database) == committed == [1]

    insert.away = True
    writes.submit_soon(insert, 3, partial(committed.append, 3))
    await writes.aclose()
    await asyncio.sleep(0)
    assert committed == [1, 3]
    assert "lost" in caplog.text
