"""Two services with different crews on one database: each executes the runs of its own crews."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from uuid import UUID

import pytest

from app.access.callers import OPERATOR
from app.crews.registry import CrewSpec, Registry
from app.db import Database
from app.runs.errors import UnknownCrew
from app.runs.human_input import HumanInput, KeptTask
from app.runs.records import DispatchedRun, ReviewDecision, RunStatus
from storage import OutputStore
from tests.runs import scripted
from tests.runs.scripted import Parts, Stage, no_crew, running_service, succeed, until

POEMS, SONGS = (Registry([CrewSpec(name, no_crew)]) for name in ("poem", "song"))
INPUTS = {"topic": "rain"}


async def _hang(inputs: Mapping[str, object], stage: Stage) -> None:
    await stage.finish(0, "of the first attempt")
    await asyncio.Event().wait()


async def _stalled_poem(database: Database, store: OutputStore) -> UUID:
    """A run whose worker is lost after its first task."""
    async with running_service(database, store, _hang, crews=POEMS) as poems:
        run_id = await poems.submit("poem", INPUTS, OPERATOR)

        async def captured() -> bool:
            return await poems.stored() == 1

        await until(captured)
        await poems.stop(0)
    return run_id


async def _status(parts: Parts, run_id: UUID) -> RunStatus:
    return (await parts.runs.get(run_id, OPERATOR)).status


async def test_each_run_is_executed_by_a_service_that_has_its_crew(
    database: Database, store: OutputStore
) -> None:
    stalled = await _stalled_poem(database, store)
    async with (
        running_service(database, store, succeed, crews=SONGS) as songs,
        running_service(database, store, succeed, crews=POEMS) as poems,
    ):
        for _ in range(2):
            await songs.recover()
            await songs.worker.drain(5)
            assert await _status(songs, stalled) == "running"
        song = await songs.run("song", INPUTS, OPERATOR)
        poem = await poems.run("poem", INPUTS, OPERATOR)
        await poems.recover()
        await poems.wait(stalled, OPERATOR)
        runs = [await poems.runs.get(run_id, OPERATOR) for run_id in (stalled, song.run_id)]
        assert [(run.status, run.attempt) for run in (*runs, poem)] == [
            ("succeeded", 2),
            ("succeeded", 1),
            ("succeeded", 1),
        ]


async def test_a_run_of_another_services_crew_is_never_given_up(
    database: Database, store: OutputStore
) -> None:
    run_id = await _stalled_poem(database, store)
    async with running_service(database, store, crews=SONGS, max_attempts=1) as songs:
        await songs.recover()
        assert await _status(songs, run_id) == "running"
        assert await songs.stored() == 1
    async with running_service(database, store, crews=POEMS, max_attempts=1) as poems:
        await poems.recover()
        assert await _status(poems, run_id) == "failed"


async def test_a_run_of_an_unregistered_crew_is_not_claimed_however_it_is_dispatched(
    database: Database, store: OutputStore
) -> None:
    run_id = await _stalled_poem(database, store)
    async with running_service(database, store, crews=SONGS) as songs:
        songs.worker.dispatch(DispatchedRun(run_id, "", "poem"))
        assert await songs.worker.wait(run_id) is None
        run = await songs.runs.get(run_id, OPERATOR)
        assert (run.status, run.attempt) == ("running", 1)


async def test_a_review_is_refused_where_the_crew_is_not_registered(
    database: Database, store: OutputStore
) -> None:
    async with (
        running_service(database, store, succeed, crews=POEMS) as poems,
        running_service(database, store, succeed, crews=SONGS) as songs,
    ):
        run_id = await _stalled_poem(database, store)
        claimed = await poems.rows.claim(run_id)
        assert claimed is not None
        now = datetime.now(UTC)
        kept = {0: KeptTask("first: text", None, now, now)}
        human = HumanInput(2, scripted.FINGERPRINT, 0, "first", "agent", kept)
        assert await poems.rows.pause(claimed, human) == "awaiting_human"
        decision = ReviewDecision(run_id, "first", "", approve=True)
        with pytest.raises(UnknownCrew, match="the crew poem, which is not registered here"):
            await songs.runs.resume(decision, OPERATOR)
        assert await _status(songs, run_id) == "awaiting_human"
        await poems.runs.resume(decision, OPERATOR)
        assert (await poems.wait(run_id, OPERATOR)).status == "succeeded"


@pytest.mark.parametrize("changed", [True, False])
async def test_a_run_that_continues_with_another_definition_of_its_crew_is_logged(
    database: Database, store: OutputStore, caplog: pytest.LogCaptureFixture, *, changed: bool
) -> None:
    run_id = await _stalled_poem(database, store)
    caplog.set_level(logging.WARNING, "crew_capture.runs")
    async with running_service(database, store, succeed, crews=POEMS) as poems:
        if changed:
            poems.engine.fingerprints["poem"] = "of a changed crew"
        await poems.recover()
        assert (await poems.wait(run_id, OPERATOR)).status == "succeeded"
    logged = [line for line in caplog.messages if "another definition of crew poem" in line]
    assert len(logged) == changed
