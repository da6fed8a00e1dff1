"""Runs that a worker finds in the database: those that it leaves to others hide no others."""

from contextlib import aclosing
from uuid import UUID

import pytest
from sqlalchemy import update

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.execution import lease_keeper
from app.runs.execution.poller import QueuePoller
from app.runs.models import UserRun
from app.runs.queue.base import RunQueue
from app.runs.queue.in_process import InProcessBroker, InProcessDriver
from storage import OutputStore
from tests.runs.scripted import Parts, running_service

INPUTS = {"topic": "rain"}
MAX_ATTEMPTS = 2


async def _accepted(database: Database, store: OutputStore, *failed_attempts: int) -> list[UUID]:
    """Runs that no worker has, after so many attempts whose workers were lost."""
    async with running_service(database, store, max_in_flight=1) as accepting:
        await accepting.worker.slots.acquire("another owner")
        runs = [await accepting.submit("poem", INPUTS, OPERATOR) for _ in failed_attempts]
        await accepting.stop(0)
    async with database.write() as connection:
        for run_id, failed in zip(runs, failed_attempts, strict=True):
            lost = {"attempt": failed, "status": "running" if failed else "queued"}
            which = update(UserRun).where(UserRun.run_id == run_id)
            await connection.execute(which.values(lease_until=None, **lost))
    return runs


async def _polled(parts: Parts) -> set[UUID]:
    await QueuePoller(parts.queries, parts.worker).run_once()
    return parts.worker.run_ids


async def test_a_run_of_a_lost_worker_does_not_hide_a_new_one_from_polling(
    database: Database, store: OutputStore
) -> None:
    _, new = await _accepted(database, store, 1, 0)
    async with running_service(database, store, max_in_flight=1) as polling:
        assert await _polled(polling) == {new}


async def test_runs_that_the_queue_dispatches_do_not_hide_suspects(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, suspect = await _accepted(database, store, 0, 0, MAX_ATTEMPTS - 1)
    monkeypatch.setattr(lease_keeper, "_RUNS_PER_PASS", 2)
    queue = RunQueue(InProcessDriver(InProcessBroker()))
    await queue.start()
    async with (
        aclosing(queue),
        running_service(database, store, queue=queue, max_attempts=MAX_ATTEMPTS) as working,
    ):
        await working.stalled_runs.run_once()
        assert working.worker.run_ids == {suspect}
