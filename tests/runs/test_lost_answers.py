"""A commit succeeds, but its answer is lost: no run is stuck in hands that don't know of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import OPERATOR
from app.db import Database, DatabaseUnavailable
from app.runs.errors import RunMoved
from app.runs.events.event import EventType
from app.runs.events.hub import EventHub
from app.runs.models import UserRun
from app.runs.persistence.repository import RunRepository
from app.runs.records import ClaimedRun, NewRun, Outcome, Settlement
from storage import OutputStore
from tests.runs.scripted import Parts, running_service, until


@contextmanager
def losing_the_answer(database: Database) -> Iterator[None]:
    """The next commit within the block is not heard of."""
    write = database.write
    lost = False

    @asynccontextmanager
    async def deaf() -> AsyncIterator[AsyncConnection]:
        nonlocal lost
        async with write() as connection:
            yield connection
        if not lost:
            lost = True
            raise DatabaseUnavailable("the answer was lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "write", deaf)
        yield
    assert lost


async def test_of_accepting_a_run_it_is_done_when_its_lease_has_ended(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store) as parts:
        with losing_the_answer(database), pytest.raises(DatabaseUnavailable):
            await parts.submit("poem", {"topic": "rain"}, OPERATOR)
        assert await parts.statuses() == ["queued"]
        await _is_done_when_its_lease_has_ended(parts)


async def test_of_claiming_a_run_it_is_done_when_its_lease_has_ended(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(database, store) as parts:
        claim = RunRepository.claim

        async def claim_deaf(self: RunRepository, run_id: UUID) -> ClaimedRun | None:
            monkeypatch.setattr(RunRepository, "claim", claim)
            with losing_the_answer(database):
                return await claim(self, run_id)

        monkeypatch.setattr(RunRepository, "claim", claim_deaf)
        run = await parts.runs.submit("poem", {"topic": "rain"}, OPERATOR)
        with pytest.raises(RunMoved, match=str(run.run_id)) as moved:
            await parts.runs.wait(run, OPERATOR)
        assert moved.value.run_id == run.run_id
        assert await parts.statuses() == ["running"]
        await _is_done_when_its_lease_has_ended(parts)


async def _is_done_when_its_lease_has_ended(parts: Parts) -> None:
    """The worker renews the leases of what it knows that it carries, and of nothing else."""
    before = await _lease_until(parts.database)
    await parts.recover()
    assert await _lease_until(parts.database) == before
    async with parts.database.write() as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await connection.execute(update(UserRun).values(lease_until=past))
    await parts.recover()

    async def done() -> bool:
        return await parts.statuses() == ["succeeded"]

    await until(done)


async def _lease_until(database: Database) -> datetime | None:
    async with database.read() as connection:
        return await connection.scalar(select(UserRun.lease_until))


async def test_of_settling_a_run_it_is_settled_once(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_service(database, store) as parts:
        settle = RunRepository.settle

        async def settle_deaf(
            self: RunRepository, run: ClaimedRun, outcome: Outcome, **facts: Any
        ) -> Settlement | None:
            monkeypatch.setattr(RunRepository, "settle", settle)
            with losing_the_answer(database):
                return await settle(self, run, outcome, **facts)

        monkeypatch.setattr(RunRepository, "settle", settle_deaf)
        settled = await parts.run("poem", {"topic": "rain"}, OPERATOR)
        assert settled.status == "succeeded"
        events = await parts.queries.events([settled.run_id])
        assert [event.type for event in events].count(EventType.RUN_SUCCEEDED) == 1


async def test_renewing_leases_waits_in_the_order_of_all_writes(database: Database) -> None:
    """Otherwise it would deadlock with a group of writes."""
    if database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    rows = RunRepository(database, EventHub(), str, worker="a", lease_seconds=60)
    later, first = sorted((uuid4(), uuid4()), reverse=True)
    for run_id in (later, first):  # as the table has them
        await rows.add([NewRun(run_id, "poem", {}, datetime.now(UTC))])
    lock = "SELECT 1 FROM user_runs WHERE run_id = :run FOR UPDATE"
    async with database.write() as group:
        await group.execute(text(lock), {"run": first})
        renewing = asyncio.create_task(rows.renew_leases({first, later}))

        async def it_waits() -> bool:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            async with database.read() as connection:
                return bool(await connection.scalar(text(waiting)))

        await until(it_waits)
        await group.execute(text(lock + " NOWAIT"), {"run": later})
    await renewing
    await rows.aclose()
