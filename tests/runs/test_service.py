"""The life of a run, over real databases and a real store."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from uuid import UUID

import pytest

from app.access.callers import OPERATOR
from app.crews.options import CrewOptions
from app.crews.registry import Registry
from app.db import Database
from app.engine import CrewFailed, ModelError, NoResult
from app.runs.errors import InvalidInput, Overloaded, ShuttingDown, UnknownCrew
from app.runs.persistence.repository import RunRepository
from app.runs.records import RunOptions, RunStatus
from storage import DeleteReport, OutputKey, OutputStore, StorageError
from tests.runs.scripted import CREWS, TASKS, Parts, Stage, running_service, succeed, until

INPUTS = {"topic": "rain"}


async def test_a_run_is_saved_with_its_outputs_and_nothing_stays_stored(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store) as parts:
        settled = await parts.run("poem", INPUTS, OPERATOR)
        row = await parts.queries.get(settled.run_id)
        assert row is not None
        assert replace(row, tasks=None) == replace(settled, tasks=None)
        assert row.status == "succeeded"
        assert row.outputs == {name: f"{name}: rain" for name in TASKS}
        assert row.raw_result == "third: rain"
        assert row.tasks is not None
        assert [task["name"] for task in row.tasks] == list(TASKS)
        assert await parts.stored() == 0


async def test_each_output_is_stored_while_the_run_goes_on(
    database: Database, store: OutputStore
) -> None:
    first_done, go_on = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "the first text")
        first_done.set()
        await go_on.wait()
        await stage.finish(1, "the second text")

    async with running_service(database, store, script) as parts:
        run_id = await parts.submit("poem", INPUTS, OPERATOR)
        await first_done.wait()
        (found,) = await store.find(run_id)
        assert await store.read(found.key) == "the first text"
        row = await parts.queries.get(run_id)
        assert row is not None
        assert row.started_at is not None
        assert found.key.started_at == int(row.started_at.timestamp())
        assert await parts.statuses() == ["running"]
        go_on.set()


@pytest.mark.parametrize(
    ("error", "error_type"),
    [
        (ModelError("the model said no"), "model_error"),
        (CrewFailed("KeyError: x"), "crew_error"),
        (NoResult("nothing came back"), "no_results"),
        (RuntimeError("secret detail"), "internal_error"),
    ],
)
async def test_an_exception_inside_the_crew_fails_the_run_and_leaves_nothing(
    database: Database, store: OutputStore, error: Exception, error_type: str
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "a text that was captured before")
        raise error

    async with running_service(database, store, script) as parts:
        settled = await parts.run("poem", INPUTS, OPERATOR)
        assert settled.status is RunStatus.FAILED
        assert settled.error_type == error_type
        assert "secret" not in str(settled.error)
        assert await parts.statuses() == ["failed"]
        assert await parts.stored() == 0


async def test_a_run_never_succeeds_with_an_output_missing(
    database: Database, store: OutputStore
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "a text")
        await stage.finish(1, " \n")

    async with running_service(database, store, script) as parts:
        settled = await parts.run("poem", INPUTS, OPERATOR)
        assert settled.error_type == "no_results"
        assert "second" in str(settled.error)


async def test_a_run_that_lasts_too_long_fails(database: Database, store: OutputStore) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "a text")
        await asyncio.Event().wait()

    async with running_service(database, store, script, timeout_seconds=0.05) as parts:
        settled = await parts.run("poem", INPUTS, OPERATOR)
        assert settled.error_type == "run_timeout"
        assert await parts.stored() == 0


async def test_waiting_for_a_slot_is_reported_and_does_not_count_as_running_time(
    database: Database, store: OutputStore
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await asyncio.sleep(0.1)
        await stage.finish_all("text")

    async with running_service(
        database, store, script, max_in_flight=1, timeout_seconds=0.35
    ) as parts:
        runs = await asyncio.gather(*(parts.run("poem", INPUTS, OPERATOR) for _ in range(5)))
    assert {run.status for run in runs} == {RunStatus.SUCCEEDED}
    assert max(run.waited_seconds or 0.0 for run in runs) > 0.35


async def test_a_crew_keeps_to_limits_of_its_own(database: Database, store: OutputStore) -> None:
    (poem,) = CREWS
    slow = CrewOptions(max_runs_in_flight=2, run_timeout_seconds=0.05)
    crews = Registry([replace(poem, options=slow), replace(poem, name="song")])
    under_way: Counter[str] = Counter()
    most: Counter[str] = Counter()
    songs_are_sung = asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        kind = str(inputs["topic"])
        under_way[kind] += 1
        most[kind] = max(most[kind], under_way[kind])
        if under_way["song"] == 5:
            songs_are_sung.set()
        try:
            await songs_are_sung.wait()
            if kind == "poem":
                await asyncio.Event().wait()
            await stage.finish_all("text")
        finally:
            under_way[kind] -= 1

    async with running_service(database, store, script, max_in_flight=7, crews=crews) as parts:
        # Poems that wait for their own limit keep no slot from the songs.
        poems = [parts.run("poem", {"topic": "poem"}, OPERATOR) for _ in range(6)]
        songs = [parts.run("song", {"topic": "song"}, OPERATOR) for _ in range(5)]
        settled = await asyncio.gather(*poems, *songs)
    assert most == {"poem": 2, "song": 5}
    assert {run.error for run in settled[:6]} == {"the run took longer than 0.05 s"}
    assert {run.status for run in settled[6:]} == {RunStatus.SUCCEEDED}


async def test_beyond_the_limits_nothing_is_accepted(
    database: Database, store: OutputStore
) -> None:
    go_on = asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await go_on.wait()
        await stage.finish_all("text")

    async with running_service(database, store, script, max_in_flight=2, max_queued=3) as parts:
        results = await asyncio.gather(
            *(parts.submit("poem", INPUTS, OPERATOR) for _ in range(8)), return_exceptions=True
        )
        assert [type(result) for result in results if isinstance(result, Exception)] == [
            Overloaded
        ] * 3
        assert len(await parts.statuses()) == 5
        go_on.set()


async def test_what_cannot_be_run_is_refused_before_anything_is_saved(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store) as parts:
        with pytest.raises(UnknownCrew):
            await parts.submit("nobody", INPUTS, OPERATOR)
        with pytest.raises(InvalidInput, match="topic: missing"):
            await parts.submit("poem", {}, OPERATOR)
        await parts.stop(1)
        with pytest.raises(ShuttingDown):
            await parts.submit("poem", INPUTS, OPERATOR)
        assert await parts.statuses() == []


async def test_a_caller_that_waits_may_go_away(database: Database, store: OutputStore) -> None:
    go_on = asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "text")
        await go_on.wait()
        await stage.finish(1, "text")

    async with running_service(database, store, script) as parts:

        async def running() -> bool:
            return await parts.stored() == 1

        async def saved_and_clean() -> bool:
            return await parts.statuses() == ["succeeded"] and await parts.stored() == 0

        client = asyncio.create_task(parts.run("poem", INPUTS, OPERATOR))
        await until(running)
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        go_on.set()
        await until(saved_and_clean)


@pytest.mark.parametrize("error", [None, ModelError("the model said no")])
async def test_outputs_are_deleted_after_the_end_of_their_run_is_committed(
    database: Database,
    store: OutputStore,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish_all("text")
        if error is not None:
            raise error

    seen: list[tuple[int, list[str]]] = []
    delete = store.delete

    async def delete_and_look(keys: Iterable[OutputKey]) -> DeleteReport:
        seen.append((await parts.stored(), await parts.statuses()))
        return await delete(keys)

    monkeypatch.setattr(store, "delete", delete_and_look)
    async with running_service(database, store, script) as parts:
        run = await parts.run("poem", INPUTS, OPERATOR)
        assert await parts.stored() == 0
    assert seen == [(3, [run.status])]


async def test_a_cancelled_run_that_is_waited_for_is_returned(
    database: Database, store: OutputStore
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await asyncio.Event().wait()

    async with running_service(database, store, script, max_in_flight=1) as parts:
        running = await parts.runs.submit("poem", INPUTS, OPERATOR)
        queued = await parts.runs.submit("poem", INPUTS, OPERATOR)
        waits = [asyncio.create_task(parts.runs.wait(r, OPERATOR)) for r in (running, queued)]

        async def is_running() -> bool:
            return sorted(await parts.statuses()) == ["queued", "running"]

        await until(is_running)
        for run in (queued, running):
            await parts.runs.cancel(run.run_id, OPERATOR)
        for wait in waits:
            run = await wait
            assert (run.status, run.error_type) == ("cancelled", "cancelled")
            assert run == await parts.runs.get(run.run_id, OPERATOR)


async def test_an_output_that_cannot_be_stored_fails_its_run_and_no_other(
    database: Database, store: OutputStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    persist = store.persist

    async def persist_some(key: object, text: str) -> object:
        if "poison" in text:
            raise StorageError("no space left")
        return await persist(key, text)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "persist", persist_some)
    async with running_service(database, store) as parts:
        topics = ["rain", "poison", "snow"]
        runs = await asyncio.gather(*(parts.run("poem", {"topic": t}, OPERATOR) for t in topics))
    assert [run.error_type for run in runs] == [None, "storage_unavailable", None]


async def test_texts_that_no_database_can_hold_do_not_keep_a_run_from_its_end(
    database: Database, store: OutputStore
) -> None:
    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "half a pair: \ud800, and a NUL: \0")

    async with running_service(database, store, script) as parts:
        settled = await parts.run("poem", INPUTS, OPERATOR)
        row = await parts.queries.get(settled.run_id)
        assert row is not None
        assert row.outputs == {"first": "half a pair: ?, and a NUL: \0"}


async def test_a_stop_waits_for_runs_and_hands_back_what_is_left(
    database: Database, store: OutputStore
) -> None:
    soon, begun = asyncio.Event(), asyncio.Event()

    async def script(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "captured")
        if inputs["topic"] == "never":
            begun.set()
            await asyncio.Event().wait()
        await soon.wait()
        await stage.finish(1, "text")

    async with running_service(database, store, script) as parts:
        quick = await parts.submit("poem", {"topic": "soon"}, OPERATOR)
        slow = await parts.submit("poem", {"topic": "never"}, OPERATOR)
        await begun.wait()
        asyncio.get_running_loop().call_later(0.05, soon.set)
        await parts.stop(0.5)
        rows = [await parts.queries.get(run_id) for run_id in (quick, slow)]
        assert [row and row.status for row in rows] == ["succeeded", "running"]
        assert len(await store.find(slow)) == 1
        assert await parts.queries.stalled(["poem"], 10) == [(slow, 1, 1, "", "poem", 0, "")]


async def test_a_stalled_run_is_claimed_and_leaves_nothing_of_any_attempt(
    database: Database, store: OutputStore
) -> None:
    async def hang(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "of the first attempt")
        await asyncio.Event().wait()

    async with running_service(database, store, hang) as stopped:
        run_id = await stopped.submit("poem", INPUTS, OPERATOR)

        async def captured() -> bool:
            return await stopped.stored() == 1

        await until(captured)
        await stopped.stop(0)
    async with running_service(database, store, succeed) as parts:
        await parts.recover()

        async def succeeded() -> bool:
            return await parts.statuses() == ["succeeded"] and await parts.stored() == 0

        await until(succeeded)
        row = await parts.queries.get(run_id)
        assert row is not None
        assert row.attempt == 2


@pytest.mark.parametrize("max_attempts", [1, 3])
async def test_a_run_whose_workers_are_lost_again_and_again_is_given_up(
    database: Database, store: OutputStore, max_attempts: int
) -> None:
    async def hang(inputs: Mapping[str, object], stage: Stage) -> None:
        await stage.finish(0, "text")
        await asyncio.Event().wait()

    attempts = 1 if max_attempts == 1 else max_attempts + 5  # those in isolation
    for attempt in range(1, attempts + 1):
        async with running_service(database, store, hang, max_attempts=max_attempts) as parts:
            if attempt == 1:
                run_id = await parts.submit("poem", INPUTS, OPERATOR)
            else:
                await parts.recover()

            async def begun(
                parts: Parts = parts, number: int = attempt, run_id: UUID = run_id
            ) -> bool:
                run = await parts.runs.get(run_id, OPERATOR)
                return run.attempt == number and await parts.stored() == 1

            await until(begun)
            await parts.stop(0)
    async with running_service(database, store, hang, max_attempts=max_attempts) as parts:
        await parts.recover()
        run = await parts.runs.get(run_id, OPERATOR)
        error = f"given up after {attempts} attempts that did not end"
        assert (run.status, run.error_type, run.error) == ("failed", "worker_lost", error)
        event = (await parts.queries.events([run_id]))[-1]
        assert event.type == "run.failed"
        assert event.data == {"error": error, "error_type": "worker_lost"}
        assert await parts.stored() == 0


@pytest.mark.parametrize("character", ["\0", "\ud800"], ids=["nul", "surrogate"])
@pytest.mark.parametrize("field", ["context_id", "idempotency_key"])
async def test_a_text_that_no_database_can_store_joins_no_group_commit(
    database: Database,
    store: OutputStore,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    character: str,
) -> None:
    async def fail(*_: object) -> None:
        raise AssertionError("it reached the repository")

    monkeypatch.setattr(RunRepository, "add", fail)
    bad = f"order{character}1"
    options = (
        RunOptions(context_id=bad) if field == "context_id" else RunOptions(idempotency_key=bad)
    )
    async with running_service(database, store) as parts:
        with pytest.raises(InvalidInput, match="at position 5") as refused:
            await parts.submit("poem", INPUTS, OPERATOR, options)
    on_the_wire = {"context_id": "contextId", "idempotency_key": "Idempotency-Key"}
    assert refused.value.field == on_the_wire[field]
