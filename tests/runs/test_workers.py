"""Workers and their crews in the database: presence, loss, draining, descriptions, queues."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import update

from app.access.callers import OPERATOR
from app.budgets import Budget
from app.crews.options import CrewOptions, InputOptions
from app.crews.registry import CrewSpec
from app.db import Database
from app.engine import CrewDescription, TaskDescription
from app.runs.crew_info import crew_info
from app.runs.execution.presence import Presence
from app.runs.models import CrewDescriptionRow
from app.runs.persistence.workers import WorkerRepository
from app.runs.records import NewRun, RunOptions
from storage import OutputStore
from tests.runs.scripted import FINGERPRINT, Parts, Stage, no_crew, running_service, until


def _presence(parts: Parts, name: str, lease_seconds: float = 30.0) -> Presence:
    workers = WorkerRepository(parts.database)
    crews = {crew.name: crew for crew in parts.runs.crews()}
    return Presence(workers, parts.worker, crews, name=name, lease_seconds=lease_seconds)


async def _names(parts: Parts) -> list[str]:
    return [worker.worker for worker in await parts.runs.workers()]


async def test_a_worker_is_listed_until_it_ends(database: Database, store: OutputStore) -> None:
    async with running_service(database, store, max_in_flight=7) as parts:
        presence = _presence(parts, "w")
        await presence.run_once()
        (worker,) = await parts.runs.workers()
        assert (worker.worker, worker.crews) == ("w", {"poem": FINGERPRINT})
        assert (worker.slots, worker.free_slots, worker.is_draining) == (7, 7, False)
        await presence.aclose()
        assert await _names(parts) == []


async def test_a_worker_that_is_lost_is_not_listed(database: Database, store: OutputStore) -> None:
    async with running_service(database, store) as parts:
        await _presence(parts, "lost", lease_seconds=-1).run_once()
        assert await _names(parts) == []
        await _presence(parts, "w").run_once()
        assert await _names(parts) == ["w"]
        assert not await WorkerRepository(database).drain("lost")


async def test_free_slots_are_those_of_the_last_renewal(
    database: Database, store: OutputStore
) -> None:
    ends = asyncio.Event()

    async def wait(inputs: Mapping[str, object], stage: Stage) -> None:
        await ends.wait()
        await stage.finish_all("done")

    async with running_service(database, store, wait, max_in_flight=2) as parts:
        presence = _presence(parts, "w")
        run_id = await parts.submit("poem", {"topic": "rain"}, OPERATOR)
        await until(lambda: _has_status(parts, "running"))
        await presence.run_once()
        assert [worker.free_slots for worker in await parts.runs.workers()] == [1]
        ends.set()
        await parts.wait(run_id, OPERATOR)
        await presence.run_once()
        assert [worker.free_slots for worker in await parts.runs.workers()] == [2]


async def test_an_operator_drains_a_worker(database: Database, store: OutputStore) -> None:
    async with running_service(database, store) as parts:
        presence, other = _presence(parts, "w"), _presence(parts, "other")
        await presence.run_once()
        await other.run_once()
        assert await WorkerRepository(database).drain("w")
        assert not await WorkerRepository(database).drain("unknown")
        await presence.run_once()
        await other.run_once()
        assert presence.drain_requested.is_set()
        assert not other.drain_requested.is_set()
        draining = {worker.worker: worker.is_draining for worker in await parts.runs.workers()}
        assert draining == {"w": True, "other": False}


async def test_a_description_has_all_that_accepting_processes_need(database: Database) -> None:
    spec = CrewSpec(
        "letter",
        no_crew,
        description="Writes a letter.",
        inputs={
            "language": InputOptions(
                type="string", default="French", help="Of the letter", examples=("French", "Greek")
            ),
            "pages": InputOptions(type="integer"),
        },
        max_input_chars=500,
        options=CrewOptions(max_model_calls=3),
    )
    tasks = (
        TaskDescription("draft", "Writer", human_input=True),
        TaskDescription("final", "Editor"),
    )
    described = CrewDescription(
        "letter", ("matter", "pages"), tasks, "native", "", "print", models=("openai/a",)
    )
    crew = crew_info(spec, described)
    workers = WorkerRepository(database)
    await workers.describe([crew])
    assert await workers.descriptions() == {"letter": crew}
    assert crew.budget == Budget(max_model_calls=3)


async def test_a_flow_is_described_with_the_schema_of_its_state(database: Database) -> None:
    schema = {"properties": {"count": {"type": "integer"}}}
    described = CrewDescription(
        "flow", (), (), "flow", "", "", defaults={"count": 0}, state_schema=schema
    )
    crew = crew_info(CrewSpec("flow", no_crew), described)
    workers = WorkerRepository(database)
    await workers.describe([crew])
    assert await workers.descriptions() == {"flow": crew}


async def test_the_last_worker_that_starts_describes_a_crew(database: Database) -> None:
    workers, spec = WorkerRepository(database), CrewSpec("poem", no_crew)
    for fingerprint in ("old", "new"):
        described = CrewDescription("poem", (), (), "plan", "", fingerprint)
        await workers.describe([crew_info(spec, described)])
    await workers.note_crews(["poem"])  # by the older one
    assert (await workers.descriptions())["poem"].fingerprint == "new"


async def test_a_crew_is_forgotten_a_week_after_its_last_worker(database: Database) -> None:
    workers = WorkerRepository(database)
    described = CrewDescription("", (), (), "plan", "", "")
    await workers.describe(crew_info(CrewSpec(name, no_crew), described) for name in ("a", "b"))
    async with database.write() as connection:
        weeks_ago = datetime.now(UTC) - timedelta(days=8)
        await connection.execute(update(CrewDescriptionRow).values(last_seen_at=weeks_ago))
    await workers.note_crews(["b"])
    assert list(await workers.descriptions()) == ["b"]


async def test_a_queued_run_says_what_it_waits_for(database: Database, store: OutputStore) -> None:
    run_id = uuid4()
    async with running_service(database, store, max_in_flight=1) as parts:
        await parts.rows.add([NewRun(run_id, "poem", {}, parts.rows.now())])  # not dispatched

        async def reason() -> str | None:
            run = await parts.runs.get(run_id, OPERATOR)
            # As other processes are seen once what is kept of them is too old.
            parts.runs._workers = WorkerRepository(database)
            return await parts.runs.queue_reason(run)

        assert await reason() == "no_worker"
        presence = _presence(parts, "w")
        await presence.run_once()
        assert await reason() is None
        await parts.worker.slots.acquire("someone")
        await presence.run_once()
        assert await reason() == "no_slot"
        parts.worker.slots.release("someone")
        await WorkerRepository(database).drain("w")
        assert await reason() == "no_worker"


async def test_a_run_that_waits_for_a_slot_here_says_so(
    database: Database, store: OutputStore
) -> None:
    async with running_service(database, store, max_in_flight=1) as parts:
        await parts.worker.slots.acquire("another owner")
        run = await parts.runs.submit("poem", {"topic": "rain"}, OPERATOR)
        assert await parts.runs.queue_reason(run) == "no_slot"
        parts.worker.slots.release("another owner")
        ended = await parts.runs.wait(run, OPERATOR)
        assert await parts.runs.queue_reason(ended) is None


async def test_a_deferred_run_waits_for_its_time(database: Database, store: OutputStore) -> None:
    async with running_service(database, store) as parts:
        options = RunOptions(not_before=parts.rows.now() + timedelta(hours=1))
        run = await parts.runs.submit("poem", {"topic": "rain"}, OPERATOR, options)
        assert await parts.runs.queue_reason(run) == "not_before"


async def _has_status(parts: Parts, status: str) -> bool:
    return await parts.statuses() == [status]
