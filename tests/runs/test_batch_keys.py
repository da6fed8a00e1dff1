"""A batch of many runs has one idempotency key: all of its runs are added, once."""

import asyncio

import pytest

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.errors import IdempotencyConflict
from app.runs.records import RunFilter, RunOptions
from app.runs.service import RunService
from storage import OutputStore
from tests.runs.scripted import running_service

# More than one transaction inserts at once.
_INPUTS = [{"topic": str(number)} for number in range(600)]
_OPTIONS = RunOptions(idempotency_key="order-1")


async def _topics(runs: RunService) -> list[str]:
    topics: list[str] = []
    cursor: str | None = None
    while True:
        page = await runs.page(RunFilter(), cursor, 200, OPERATOR)
        topics += [str((run.inputs or {})["topic"]) for run in page.runs]
        if (cursor := page.next_cursor) is None:
            return sorted(topics, key=int)


async def test_repeats_add_no_run(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, max_queued=4000) as parts:
        batches = await asyncio.gather(
            *(parts.runs.submit_many("poem", _INPUTS, OPERATOR, _OPTIONS) for _ in range(3))
        )
        assert batches[0] == batches[1] == batches[2]
        assert len(set(batches[0].run_ids)) == 600
        for index in (0, 1, 599):
            run = await parts.runs.get(batches[0].run_ids[index], OPERATOR)
            assert run.inputs == _INPUTS[index]
            assert run.batch_id == batches[0].batch_id
        other = [*_INPUTS[:-1], {"topic": "599, and another"}]
        with pytest.raises(IdempotencyConflict):
            await parts.runs.submit_many("poem", other, OPERATOR, _OPTIONS)
        assert await _topics(parts.runs) == [run["topic"] for run in _INPUTS]
