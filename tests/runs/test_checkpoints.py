"""A run that is taken over goes on from what its earlier attempts have captured."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.access.callers import OPERATOR
from app.db import Database
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.execution.checkpoints import usage_in
from app.runs.records import Run
from storage import OutputStore
from tests.runs import scripted
from tests.runs.scripted import Parts, Script, Stage, running_service, until

INPUTS = {"topic": "rain"}


def _hang_after(*finished: int) -> Script:
    """Finishes these tasks, with some usage, and then nothing more."""

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        for index in finished:
            stage.usage.total_tokens += 10
            await stage.finish(index, f"of the first attempt: {index}")
        await asyncio.Event().wait()

    return script


async def _finish(inputs: Mapping[str, object], stage: Stage) -> None:
    stage.usage.total_tokens += 5
    for index in range(3):
        await stage.finish(index, f"of the second attempt: {index}")


async def _interrupted(database: Database, store: OutputStore, script: Script, tasks: int) -> UUID:
    """A run whose process stopped when that many tasks were captured."""
    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)

        async def captured() -> bool:
            events = await parts.queries.events([run_id])
            return [event.type for event in events].count(EventType.TASK_FINISHED) == tasks

        await until(captured)
        await parts.stop(0)
    return run_id


async def _continued(parts: Parts, run_id: UUID) -> Run:
    await parts.recover()

    async def settled() -> bool:
        return (await parts.runs.get(run_id, OPERATOR)).finished_at is not None

    await until(settled)
    await parts.worker.drain(5)
    return await parts.runs.get(run_id, OPERATOR)


@pytest.mark.parametrize("done", [(0,), (1,), (0, 1), (0, 1, 2)])
async def test_captured_tasks_are_not_executed_again(
    database: Database, store: OutputStore, done: tuple[int, ...]
) -> None:
    run_id = await _interrupted(database, store, _hang_after(*done), len(done))
    async with running_service(database, store, _finish) as parts:
        run = await _continued(parts, run_id)
        assert run.status == "succeeded"
        assert run.attempt == 2
        assert run.outputs == {
            name: f"of the {'first' if index in done else 'second'} attempt: {index}"
            for index, name in enumerate(scripted.TASKS)
        }
        assert run.tasks is not None
        assert [task["replayed"] for task in run.tasks] == [i in done for i in range(3)]
        assert run.usage is not None
        assert run.usage["total_tokens"] == 10 * len(done) + 5
        assert await parts.stored() == 0


def _lose_outputs(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def find_nothing(run_id: UUID) -> list[object]:
        return []

    monkeypatch.setattr(store, "find", find_nothing)


def _change_the_crew(store: OutputStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted, "FINGERPRINT", "of a changed crew")


@pytest.mark.parametrize("change", [_lose_outputs, _change_the_crew])
async def test_without_what_it_needs_a_run_starts_over(
    database: Database,
    store: OutputStore,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[OutputStore, pytest.MonkeyPatch], None],
) -> None:
    run_id = await _interrupted(database, store, _hang_after(0, 1), 2)
    change(store, monkeypatch)
    async with running_service(database, store, _finish) as parts:
        run = await _continued(parts, run_id)
        assert run.status == "succeeded"
        assert run.outputs is not None
        assert all("second attempt" in text for text in run.outputs.values())
        assert run.tasks is not None
        assert not any(task["replayed"] for task in run.tasks)


async def test_an_output_that_cannot_be_read_is_made_again(
    database: Database, store: OutputStore
) -> None:
    run_id = await _interrupted(database, store, _hang_after(0, 1), 2)
    first, _ = await store.find(run_id)
    await store.delete([first.key])
    async with running_service(database, store, _finish) as parts:
        run = await _continued(parts, run_id)
        assert run.tasks is not None
        assert [task["replayed"] for task in run.tasks] == [False, True, False]


async def test_a_flow_starts_from_the_beginning_and_its_usage_adds_up(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripted, "FINGERPRINT", "")
    run_id = await _interrupted(database, store, _hang_after(0, 1), 2)
    async with running_service(database, store, _finish) as parts:
        run = await _continued(parts, run_id)
        assert run.outputs is not None
        assert all("second attempt" in text for text in run.outputs.values())
        assert run.usage is not None
        assert run.usage["total_tokens"] == 25
        assert await parts.stored() == 0


def test_events_of_older_versions_have_the_usage_of_the_run() -> None:
    run_id, now = uuid4(), datetime.now(UTC)

    def finished(seq: EventSeq, **usage: Any) -> Event:
        return Event(run_id, seq, EventType.TASK_FINISHED, {"index": 0, **usage}, now)

    first, second = EventSeq.first(1), EventSeq.first(2)
    events = [
        finished(first, usage={"total_tokens": 10}),
        finished(first.next(), usage={"total_tokens": 15}),
        finished(second, usage={"total_tokens": 3}, run_usage={"total_tokens": 3}),
        finished(second.next(), usage={"total_tokens": 4}, run_usage={"total_tokens": 7}),
    ]
    assert usage_in(events) == {"total_tokens": 22}
