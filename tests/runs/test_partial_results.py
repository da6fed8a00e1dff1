"""Outputs are readable from the end of their task, and stay with a run that does not succeed."""

import asyncio
from collections.abc import Mapping
from uuid import UUID

import pytest

from app.access.callers import OPERATOR, Caller
from app.db import Database
from app.engine import ModelError, Usage
from app.runs.errors import NotRetryable
from app.runs.events.event import EventType
from app.runs.persistence.transitions import Applied
from app.runs.records import RunStatus
from storage import OutputStore
from tests.runs.scripted import MODELS, Parts, Stage, running_service, until


class _Script:
    """Finishes the first task, then waits, and fails unless it is repaired."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.go_on = asyncio.Event()
        self.is_repaired = False

    async def __call__(self, inputs: Mapping[str, object], stage: Stage) -> None:
        stage.usage = Usage(total_tokens=7)
        await stage.finish(0, "one")
        if self.is_repaired:
            await stage.finish(1, "two")
            await stage.finish(2, "three")
            return
        await stage.start(1)
        self.waits.set()
        await self.go_on.wait()
        raise ModelError("the model is away")


async def _submitted(parts: Parts, script: _Script) -> UUID:
    run_id = await parts.submit("poem", {"topic": "rain"}, OPERATOR)
    await script.waits.wait()

    async def is_second_started() -> bool:
        events = await parts.queries.history(run_id)
        return [event.type for event in events].count(EventType.TASK_STARTED) == 2

    await until(is_second_started)  # events are stored with the next group
    return run_id


async def test_a_running_run_has_the_outputs_of_its_finished_tasks(
    database: Database, store: OutputStore
) -> None:
    script = _Script()
    async with (
        running_service(database, store, script) as one,
        running_service(database, store, script) as other,
    ):
        run_id = await _submitted(one, script)
        run = await one.runs.get(run_id, OPERATOR)
        assert await one.runs.outputs(run) == {"first": "one"}

        async def is_readable_elsewhere() -> bool:
            return await other.runs.outputs(run) == {"first": "one"}

        await until(is_readable_elsewhere)
        # Names are known, and other outputs are given, without a read.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "read", None)
            for parts in (one, other):
                assert await parts.runs.output_names(run) == {"first"}
            assert await other.runs.outputs(run, ["second"]) is None
        assert await other.runs.outputs(run, ["first"]) == {"first": "one"}
        script.go_on.set()


async def test_a_failed_run_keeps_outputs_usage_and_the_failed_task(
    database: Database, store: OutputStore
) -> None:
    script = _Script()
    async with running_service(database, store, script) as parts:
        run_id = await _submitted(parts, script)
        script.go_on.set()
        waited = await parts.wait(run_id, OPERATOR)
        run = await parts.runs.get(run_id, OPERATOR)
        for ended in (waited, run):
            assert (ended.status, ended.outputs) == (RunStatus.FAILED, {"first": "one"})
        assert run.usage is not None
        assert run.usage["total_tokens"] == 7
        tasks = await parts.runs.tasks(run)
        assert [task["status"] for task in tasks] == ["finished", "failed", "pending"]
        assert tuple(tasks[0]["models"]) == MODELS
        assert await parts.stored() == 0


@pytest.mark.parametrize("cancelled_by", ["the process that executes it", "another process"])
async def test_a_cancelled_run_keeps_outputs(
    database: Database, store: OutputStore, cancelled_by: str
) -> None:
    script = _Script()
    async with (
        running_service(database, store, script) as one,
        running_service(database, store, script) as other,
    ):
        run_id = await _submitted(one, script)
        by = other if cancelled_by == "another process" else one
        await by.runs.cancel(run_id, OPERATOR, "no longer needed")
        await one.peer_poller.run_once()
        await one.worker.drain(5)
        run = await by.runs.get(run_id, OPERATOR)
        assert (run.status, run.outputs) == (RunStatus.CANCELLED, {"first": "one"})
        assert (run.error, run.error_type) == ("cancelled: no longer needed", "cancelled")
        assert run.usage is not None
        assert run.usage["total_tokens"] == 7
        tasks = await by.runs.tasks(run)
        assert [task["status"] for task in tasks] == ["finished", "cancelled", "pending"]
        assert tuple(tasks[0]["models"]) == MODELS
        assert await by.stored() == 0


async def test_a_retry_continues_after_the_finished_tasks(
    database: Database, store: OutputStore
) -> None:
    script = _Script()
    async with running_service(database, store, script) as parts:
        run_id = await _submitted(parts, script)
        script.go_on.set()
        failed = await parts.wait(run_id, OPERATOR)
        script.is_repaired = True
        await asyncio.gather(*(parts.runs.retry(run_id, OPERATOR) for _ in range(5)))
        run = await parts.wait(run_id, OPERATOR)
        assert run.status is RunStatus.SUCCEEDED, run.error
        assert run.outputs == {"first": "one", "second": "two", "third": "three"}
        assert run.tasks is not None
        assert [task["replayed"] for task in run.tasks] == [True, False, False]
        assert all(tuple(task["models"]) == MODELS for task in run.tasks)
        assert run.attempt > failed.attempt
        assert (run.error, run.error_type) == (None, None)
        events = await parts.queries.history(run_id)
        ends = (EventType.RUN_QUEUED, EventType.RUN_FAILED, EventType.RUN_SUCCEEDED)
        assert [e.type for e in events if e.type in ends] == [
            EventType.RUN_QUEUED,
            EventType.RUN_FAILED,
            EventType.RUN_QUEUED,
            EventType.RUN_SUCCEEDED,
        ]
        with pytest.raises(NotRetryable, match="is succeeded"):
            await parts.runs.retry(run_id, OPERATOR)


async def test_a_retried_run_that_is_cancelled_has_its_end_and_its_outputs(
    database: Database, store: OutputStore
) -> None:
    script = _Script()
    async with running_service(database, store, script) as parts:
        run_id = await _submitted(parts, script)
        script.go_on.set()
        await parts.wait(run_id, OPERATOR)
        await parts.runs.retry(run_id, OPERATOR)
        await parts.runs.cancel(run_id, OPERATOR)
        await parts.worker.drain(5)
        run = await parts.runs.get(run_id, OPERATOR)
        assert (run.status, run.outputs) == (RunStatus.CANCELLED, {"first": "one"})
        events = await parts.queries.history(run_id)
        assert events[-1].type == EventType.RUN_CANCELLED


async def test_a_run_that_is_given_up_keeps_its_outputs(
    database: Database, store: OutputStore
) -> None:
    script = _Script()
    async with running_service(database, store, script) as lost:
        run_id = await _submitted(lost, script)
        await lost.stop(0)
        async with running_service(database, store, script, max_attempts=1) as parts:
            await parts.recover()
            run = await parts.runs.get(run_id, OPERATOR)
            assert (run.error_type, run.outputs) == ("worker_lost", {"first": "one"})
            tasks = await parts.runs.tasks(run)
            assert [task["status"] for task in tasks] == ["finished", "failed", "pending"]
            assert tuple(tasks[0]["models"]) == MODELS
            assert await parts.stored() == 0


async def test_a_caller_that_goes_away_during_a_retry_does_not_stop_it(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _Script()
    async with running_service(database, store, script) as parts:
        run_id = await _submitted(parts, script)
        script.go_on.set()
        await parts.wait(run_id, OPERATOR)
        script.is_repaired = True
        committed, go_on, commit = asyncio.Event(), asyncio.Event(), parts.rows.retry

        async def retry(run_id: UUID, caller: Caller) -> Applied:
            applied = await commit(run_id, caller)
            committed.set()
            await go_on.wait()
            return applied

        monkeypatch.setattr(parts.rows, "retry", retry)
        client = asyncio.create_task(parts.runs.retry(run_id, OPERATOR))
        await committed.wait()
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        go_on.set()

        async def is_settled() -> bool:
            return await parts.statuses() == ["succeeded"]

        await until(is_settled)
