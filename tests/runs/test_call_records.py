"""A run keeps what each of its calls to models and tools was."""

import asyncio
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from app.access.callers import OPERATOR, Caller
from app.db import Database, DatabaseUnavailable
from app.engine import EngineError
from app.runs import call_records
from app.runs.call_records import CallBatch, CallContent, CallRecord
from app.runs.errors import InvalidInput, UnknownRun
from app.runs.events.event import EventType
from app.runs.human_input import HumanInput, KeptTask
from app.runs.maintenance.retention import purge
from app.runs.models import RunCalls
from app.runs.records import CANCELLED, NewRun, Outcome, RunStatus
from storage import OutputStore
from tests.runs.scripted import Parts, Stage, running_service, until

INPUTS = {"topic": "canary-of-the-user"}
ANSWER = "canary-of-the-model"


async def _calls(parts: Parts, run_id: UUID) -> list[CallRecord]:
    page = await parts.runs.calls(run_id, OPERATOR, cursor=None, limit=1000)
    assert page.next_cursor is None
    return [call for call, _ in page.calls]


async def _contents(parts: Parts, run_id: UUID) -> list[CallContent | None]:
    page = await parts.runs.calls(run_id, OPERATOR, cursor=None, limit=1000)
    return [content for _, content in page.calls]


async def _rows(database: Database) -> int:
    async with database.read() as connection:
        return await connection.scalar(select(func.count()).select_from(RunCalls)) or 0


async def _captured(parts: Parts, run_id: UUID, tasks: int) -> None:
    async def captured() -> bool:
        events = await parts.queries.events([run_id])
        return [event.type for event in events].count(EventType.TASK_FINISHED) == tasks

    await until(captured)


async def _all_tasks(inputs: Mapping[str, object], stage: Stage) -> None:
    """Each task calls its model; the second one's tool delegates to another agent."""
    for index in range(3):
        messages = [{"role": "user", "content": f"{inputs['topic']} {index}"}]
        if index == 1:
            with (
                stage.call_tool(1, {"text": inputs["topic"]}, ANSWER) as tool,
                stage.call_model(1, messages, ANSWER, within=tool),
            ):
                pass
        fields = {"input_tokens": 7, "output_tokens": 5, "cached_tokens": 3, "reasoning_tokens": 2}
        with stage.call_model(index, messages, ANSWER, finish_reason="stop", retries=1, **fields):
            pass
        await stage.finish(index, f"text {index}")


async def test_a_run_has_its_calls_with_their_tasks_tokens_and_times(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _all_tasks) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        calls = await _calls(parts, run.run_id)
        assert await _rows(database) == 3  # one for each finished task
    assert [(c.attempt, c.id, c.index, c.task, c.model, c.tool, c.within) for c in calls] == [
        (1, 1, 0, "first", "scripted/model", None, None),
        (1, 2, 1, "second", None, "look", None),
        (1, 3, 1, "second", "scripted/model", None, 2),
        (1, 4, 1, "second", "scripted/model", None, None),
        (1, 5, 2, "third", "scripted/model", None, None),
    ]
    first = calls[0]
    assert (first.input_tokens, first.output_tokens) == (7, 5)
    assert (first.cached_tokens, first.reasoning_tokens) == (3, 2)
    assert (first.finish_reason, first.retries, first.error_type) == ("stop", 1, None)
    assert first.started_at <= (first.finished_at or 0)
    assert [call.started_at for call in calls] == sorted(call.started_at for call in calls)


async def test_a_run_without_calls_has_an_empty_page(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert await _calls(parts, run.run_id) == []
        assert await _rows(database) == 0


@pytest.mark.parametrize("keep_messages", [False, True])
async def test_texts_are_kept_only_if_that_is_set(
    database: Database, store: OutputStore, keep_messages: bool
) -> None:
    async with running_service(database, store, _all_tasks, keep_messages=keep_messages) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        contents = await _contents(parts, run.run_id)
        async with database.read() as connection:
            rows = list(await connection.execute(select(RunCalls.calls, RunCalls.contents)))
    assert rows
    if not keep_messages:
        assert contents == [None] * 5
        assert [row.contents for row in rows] == [None] * 3
        assert not any(b"canary" in row.calls for row in rows)
        return
    assert contents[0] == CallContent(
        messages=[{"role": "user", "content": "canary-of-the-user 0"}], answer=ANSWER
    )
    assert contents[1] == CallContent(input={"text": "canary-of-the-user"}, result=ANSWER)


async def test_reasons_and_errors_are_words(database: Database, store: OutputStore) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        with stage.call_model(0, finish_reason=f"because of {inputs['topic']}"):
            pass
        with stage.call_model(0):
            raise LookupError(inputs["topic"])

    async with running_service(database, store, script) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert run.status == "failed"
        ended, failed = await _calls(parts, run.run_id)
    assert (ended.finish_reason, ended.error_type) == ("other", None)
    assert (failed.finish_reason, failed.error_type) == (None, "LookupError")


async def test_messages_are_those_that_the_call_began_with(
    database: Database, store: OutputStore
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        messages = [{"role": "user", "content": "first"}]
        with stage.call_model(0, messages, "answer"):
            messages[0]["content"] = "changed"
            messages.append({"role": "assistant", "content": "later"})
        await stage.finish_all("text")

    async with running_service(database, store, script, keep_messages=True) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        [content] = await _contents(parts, run.run_id)
    assert content is not None
    assert content.messages == [{"role": "user", "content": "first"}]


class _Odd:
    def __str__(self) -> str:
        return "odd \ud800"


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("nul \0 and half \ud800", "nul \0 and half ?"),
        ({"a": {1, 2}, 3: _Odd()}, {"a": [1, 2], "3": "odd ?"}),
        ([2**80, 1.5, None, "\ud800"], [2**80, 1.5, None, "?"]),
        (_Broken(), "<_Broken>"),
        (float("nan"), None),
    ],
)
async def test_texts_of_any_kind_are_kept(
    database: Database, store: OutputStore, value: Any, kept: Any
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        with stage.call_tool(0, given=value):
            pass
        await stage.finish_all("text")

    async with running_service(database, store, script, keep_messages=True) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        [content] = await _contents(parts, run.run_id)
    assert run.status == "succeeded"
    assert content == CallContent(input=kept)


async def test_the_texts_of_a_run_are_bounded_over_its_attempts(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.execution.worker.MAX_CONTENT_BYTES", 1050)
    fails = [True, False]

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        for length in (400, 400, 400, 50):
            with stage.call_model(0, "x" * length):
                pass
        if fails.pop(0):
            raise EngineError("again")
        await stage.finish_all("text")

    async with running_service(database, store, script, keep_messages=True) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        await parts.runs.retry(run.run_id, OPERATOR)
        await parts.wait(run.run_id, OPERATOR)
        page = await parts.runs.calls(run.run_id, OPERATOR, cursor=None, limit=1000)
    omitted = [call.content_omitted for call, _ in page.calls]
    assert omitted == [False, False, True, False, True, True, True, False]
    assert [content is None for _, content in page.calls] == omitted
    assert sum(call.content_bytes for call, _ in page.calls) <= 1050


async def test_a_run_under_way_shows_its_calls_so_far(
    database: Database, store: OutputStore
) -> None:
    called, go_on = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        with stage.call_model(0):
            pass
        await stage.finish(0, "text")
        with stage.call_model(1):
            pass
        with stage.call_model(1):
            called.set()
            await go_on.wait()
        for index in (1, 2):
            await stage.finish(index, "text")

    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)
        await called.wait()
        assert [c.finished_at is None for c in await _calls(parts, run_id)] == [False, False, True]
        await _captured(parts, run_id, 1)
        assert [c.id for c in await _calls(parts, run_id)] == [1, 2, 3]
        go_on.set()
        await parts.wait(run_id, OPERATOR)
        assert [c.finished_at is None for c in await _calls(parts, run_id)] == [False] * 3


async def _hang(inputs: Mapping[str, object], stage: Stage) -> None:
    with stage.call_model(0):
        pass
    await stage.finish(0, "text")
    with stage.call_model(1):
        pass
    with stage.call_model(1):
        await asyncio.Event().wait()


async def test_a_run_that_lasts_too_long_keeps_its_calls(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _hang, timeout_seconds=0.2) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert run.error_type == "run_timeout"
        calls = await _calls(parts, run.run_id)
    assert [call.error_type for call in calls] == [None, None, "CancelledError"]


async def test_a_cancelled_run_keeps_its_calls(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, _hang) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)
        await _captured(parts, run_id, 1)
        run = await parts.runs.get(run_id, OPERATOR)
        await parts.runs.cancel(run_id, OPERATOR)
        assert (await parts.runs.wait(run, OPERATOR)).status == "cancelled"
        calls = await _calls(parts, run_id)
    assert [call.error_type for call in calls] == [None, None, "CancelledError"]


async def test_a_call_that_its_run_does_not_wait_for_has_no_end(
    database: Database, store: OutputStore
) -> None:
    ended, go_on = asyncio.Event(), threading.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        def call_from_thread() -> None:
            with stage.call_model(0):
                loop.call_soon_threadsafe(begun.set)
                assert go_on.wait(20)
            loop.call_soon_threadsafe(ended.set)

        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        loop.run_in_executor(None, call_from_thread)
        await begun.wait()
        raise EngineError("the task has failed")

    async with running_service(database, store, script) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        [before] = await _calls(parts, run.run_id)
        go_on.set()
        await ended.wait()
        [after] = await _calls(parts, run.run_id)
    assert before == after
    assert (before.finished_at, before.error_type) == (None, None)


async def test_calls_of_threads_are_all_recorded(database: Database, store: OutputStore) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        def call_often() -> None:
            for _ in range(100):
                with stage.call_tool(0), stage.call_model(0):
                    pass

        threads = [asyncio.to_thread(call_often) for _ in range(4)]
        busy = asyncio.gather(*threads)
        while not busy.done():
            await stage.finish(0, "text")
        await stage.finish_all("text")

    async with running_service(database, store, script) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        calls = await _calls(parts, run.run_id)
    assert [call.id for call in calls] == list(range(1, 801))


async def test_calls_beyond_the_limit_are_not_recorded(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runs.execution.call_recorder.MAX_CALLS_PER_ATTEMPT", 2)
    async with running_service(database, store, _all_tasks) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert run.status == "succeeded"
        assert len(await _calls(parts, run.run_id)) == 2


async def test_a_takeover_keeps_the_calls_of_earlier_attempts(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _hang) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)
        await _captured(parts, run_id, 1)
        assert await _rows(database) == 1  # what a process that is lost leaves
        await parts.stop(0)
    async with running_service(database, store, _not_replayed) as parts:
        await parts.recover()

        async def settled() -> bool:
            return (await parts.runs.get(run_id, OPERATOR)).finished_at is not None

        await until(settled)
        run = await parts.runs.get(run_id, OPERATOR)
        calls = await _calls(parts, run_id)
    assert run.status == "succeeded"
    assert [(call.attempt, call.id, call.index) for call in calls] == [
        (1, 1, 0),
        (1, 2, 1),
        (1, 3, 1),
        (2, 1, 1),
        (2, 2, 2),
    ]
    assert [call.error_type for call in calls if call.attempt == 1][-1] == "CancelledError"


async def _not_replayed(inputs: Mapping[str, object], stage: Stage) -> None:
    for index in range(3):
        if index not in stage.replays:
            with stage.call_model(index):
                pass
        await stage.finish(index, "text")


async def test_calls_are_deleted_with_their_run(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, _all_tasks) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        await parts.runs.delete(run.run_id, OPERATOR)
        with pytest.raises(UnknownRun):
            await _calls(parts, run.run_id)
    assert await _rows(database) == 0


async def test_calls_are_purged_with_their_run(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, _all_tasks) as parts:
        await parts.run("poem", INPUTS, OPERATOR)
        assert await _rows(database) == 3
        assert await purge(database, timedelta(0)) == 1
    assert await _rows(database) == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatabaseUnavailable("away"), RunStatus.SUCCEEDED),
        (ValueError("a value that the database refuses"), RunStatus.FAILED),
    ],
)
async def test_an_end_that_is_not_saved_at_once_keeps_its_calls(
    database: Database,
    store: OutputStore,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: RunStatus,
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish_all("text")
        with stage.call_model(None):
            pass

    async with running_service(database, store, script) as parts:
        settle, errors = parts.rows.settle, [error]

        async def fail_once(*args: Any, **options: Any) -> Any:
            if errors:
                raise errors.pop()
            return await settle(*args, **options)

        monkeypatch.setattr(parts.rows, "settle", fail_once)
        run = await parts.run("poem", INPUTS, OPERATOR)
        [call] = await _calls(parts, run.run_id)
    assert run.status == status
    assert (call.task, call.index) == (None, None)


async def test_a_run_that_is_cancelled_and_deleted_at_once_leaves_no_calls(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, _hang) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)
        await _captured(parts, run_id, 1)
        await parts.rows.cancel(run_id)
        await parts.rows.delete(run_id)
        parts.worker.cancel(run_id)
        await parts.worker.drain(5)
    assert await _rows(database) == 0


async def test_calls_are_those_of_the_caller_s_own_runs(
    database: Database, store: OutputStore
) -> None:
    anna, berta = Caller("anna", is_admin=False), Caller("berta", is_admin=False)
    async with running_service(database, store, _all_tasks) as parts:
        run = await parts.run("poem", INPUTS, anna)
        assert len((await parts.runs.calls(run.run_id, anna, cursor=None, limit=9)).calls) == 5
        for caller, run_id in ((berta, run.run_id), (anna, UUID(int=7))):
            with pytest.raises(UnknownRun):
                await parts.runs.calls(run_id, caller, cursor=None, limit=9)


async def test_calls_are_paged(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, _all_tasks) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert await _pages(parts, run.run_id, limit=2) == [[1, 2], [3, 4], [5]]
        assert await _pages(parts, run.run_id, limit=5) == [[1, 2, 3, 4, 5]]
        for wrong in ("", "1", "1.x", "1.1.1", "9" * 40, "１.１"):
            with pytest.raises(InvalidInput):
                await parts.runs.calls(run.run_id, OPERATOR, cursor=wrong, limit=2)


async def test_pages_with_texts_are_bounded_in_bytes(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        for length in (100, 100, 900, 100, 100):
            with stage.call_model(0, "x" * length):
                pass
        await stage.finish_all("text")

    monkeypatch.setattr("app.runs.service.MAX_CONTENT_BYTES_PER_PAGE", 500)
    async with running_service(database, store, script, keep_messages=True) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert await _pages(parts, run.run_id, limit=9) == [[1, 2], [3], [4, 5]]


async def _pages(parts: Parts, run_id: UUID, limit: int) -> list[list[int]]:
    pages: list[list[int]] = []
    cursor = None
    while not pages or cursor is not None:
        page = await parts.runs.calls(run_id, OPERATOR, cursor=cursor, limit=limit)
        pages.append([call.id for call, _ in page.calls])
        cursor = page.next_cursor
    return pages


def _batch(run_id: UUID, attempt: int = 1, number: int = 1) -> CallBatch:
    call = CallRecord(attempt=attempt, id=number, started_at=1, model="m", cost=2**40)
    return CallBatch(run_id, attempt, number, [call], {})


async def _claimed(parts: Parts) -> Any:
    run = NewRun(UUID(int=5), "poem", INPUTS, datetime.now(UTC))
    await parts.rows.add([run])
    claimed = await parts.rows.claim(run.run_id)
    assert claimed is not None
    return claimed


async def test_an_end_that_is_committed_again_stores_its_calls_once(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store) as parts:
        claimed = await _claimed(parts)
        outcome = Outcome(RunStatus.FAILED, error="no", error_type="crew_error")
        for _ in range(2):
            await parts.rows.settle(claimed, outcome, calls=_batch(claimed.run_id))
        [call] = await _calls(parts, claimed.run_id)
    assert call == _batch(claimed.run_id).calls[0]


async def test_a_refused_end_keeps_its_calls(database: Database, store: OutputStore) -> None:
    """The run was cancelled meanwhile, or another attempt has begun: the calls were made."""
    async with running_service(database, store) as parts:
        claimed = await _claimed(parts)
        await parts.rows.cancel(claimed.run_id)
        await parts.rows.settle(claimed, CANCELLED, calls=_batch(claimed.run_id))
        await parts.runs.retry(claimed.run_id, OPERATOR)
        await parts.wait(claimed.run_id, OPERATOR)
        await parts.rows.settle(claimed, CANCELLED, calls=_batch(claimed.run_id, number=2))
        assert [c.id for c in await _calls(parts, claimed.run_id)] == [1, 2]
        assert (await parts.runs.get(claimed.run_id, OPERATOR)).status == "succeeded"


async def test_a_pause_stores_the_calls(database: Database, store: OutputStore) -> None:
    async with running_service(database, store) as parts:
        claimed = await _claimed(parts)
        now = datetime.now(UTC)
        kept = KeptTask("text", None, now, now)
        human = HumanInput(1, "", 0, "first", "agent", {0: kept})
        await parts.rows.pause(claimed, human, calls=_batch(claimed.run_id))
        assert len(await _calls(parts, claimed.run_id)) == 1


def test_stored_calls_of_later_versions_can_be_read() -> None:
    calls = call_records.decode_calls(b'[{"attempt":1,"id":1,"started_at":5,"later":{}}]')
    assert calls == [CallRecord(attempt=1, id=1, started_at=5)]
