"""The table of runs: who may change a row, and when."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import JSON, Uuid, bindparam, text, update

from app.db import Database
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub
from app.runs.human_input import HumanInput, KeptTask
from app.runs.models import UserRun
from app.runs.persistence.published_runs import PublishedRuns
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import ClaimedRun, NewRun, Outcome, RunStatus, webhooks_at
from app.telemetry.metrics import recording
from tests.telemetry.scraped import scraped

Worker = Callable[[str], RunRepository]
SUCCEEDED = Outcome(RunStatus.SUCCEEDED, outputs={"report": "text"}, raw_result="text")


@pytest.fixture
async def worker(database: Database) -> AsyncIterator[Worker]:
    """Makes the rows as a worker of that name sees them."""
    made: list[RunRepository] = []

    def make(name: str) -> RunRepository:
        made.append(RunRepository(database, EventHub(), str, worker=name, lease_seconds=60))
        return made[-1]

    yield make
    for rows in made:
        await rows.aclose()


@pytest.fixture
def queries(database: Database) -> RunQueries:
    return RunQueries(database)


async def _add(rows: RunRepository, inputs: dict[str, object] | None = None) -> UUID:
    run = NewRun(uuid4(), "idea", inputs or {}, datetime.now(UTC))
    await rows.add([run])
    return run.run_id


async def _claim(rows: RunRepository, run_id: UUID) -> ClaimedRun:
    claimed = await rows.claim(run_id)
    assert claimed is not None
    return claimed


async def _end_leases(database: Database, *, is_released: bool = False) -> None:
    until = None if is_released else datetime(2020, 1, 1, tzinfo=UTC)
    async with database.write() as connection:
        await connection.execute(update(UserRun).values(lease_until=until))


async def test_a_run_goes_from_queued_to_running_to_succeeded(
    worker: Worker, queries: RunQueries
) -> None:
    rows = worker("a")
    run_id = await _add(rows, {"text": "ünïcode", "number": 5, "list": [1, {"x": None}]})
    queued = await queries.get(run_id)
    assert queued is not None
    assert (queued.status, queued.attempt, queued.started_at) == ("queued", 0, None)
    claimed = await _claim(rows, run_id)
    running = await queries.get(run_id)
    assert running is not None
    assert (running.status, running.attempt) == ("running", 1)
    assert running.started_at == claimed.started_at
    assert await rows.settle(claimed, SUCCEEDED)
    settled = await queries.get(run_id)
    assert settled is not None
    assert settled.status == "succeeded"
    assert settled.inputs == {"text": "ünïcode", "number": 5, "list": [1, {"x": None}]}
    assert settled.outputs == {"report": "text"}
    assert settled.raw_result == "text"
    assert settled.created_at <= claimed.started_at
    assert settled.finished_at is not None
    assert settled.finished_at >= claimed.started_at
    assert settled.lease_until is None


async def test_of_two_transitions_at_once_the_first_counts(
    worker: Worker, queries: RunQueries
) -> None:
    rows = worker("a")
    run_id = await _add(rows)
    claimed, none = await asyncio.gather(rows.claim(run_id), rows.claim(run_id))
    assert claimed is not None
    assert none is None
    cancelled, settlement = await asyncio.gather(
        rows.cancel(run_id), rows.settle(claimed, SUCCEEDED)
    )
    assert cancelled is RunStatus.CANCELLED
    run = await queries.get(run_id)
    assert run is not None
    assert settlement == (RunStatus.CANCELLED, run.finished_at)


async def test_outputs_keep_every_character(worker: Worker, queries: RunQueries) -> None:
    rows = worker("a")
    claimed = await _claim(rows, await _add(rows))
    text = "NUL \0, quotes \"', backslash \\, 中文, 🚀\r\n"
    outcome = Outcome(RunStatus.SUCCEEDED, outputs={"report": text}, raw_result=text)
    assert await rows.settle(claimed, outcome)
    run = await queries.get(claimed.run_id)
    assert run is not None
    assert run.outputs == {"report": text}
    assert run.raw_result == text


async def test_only_one_of_many_claims_gets_a_run(database: Database, worker: Worker) -> None:
    run_ids = [await _add(worker("a")) for _ in range(20)]
    await _end_leases(database)
    workers = [worker(name) for name in "bcde"]
    claims = await asyncio.gather(
        *(rows.claim(run_id) for run_id in run_ids for rows in workers), return_exceptions=True
    )
    claimed = [claim.run_id for claim in claims if isinstance(claim, ClaimedRun)]
    assert sorted(claimed) == sorted(run_ids)
    assert not [claim for claim in claims if isinstance(claim, Exception)]


async def test_a_run_that_another_worker_holds_is_not_claimed(worker: Worker) -> None:
    a, b = worker("a"), worker("b")
    run_id = await _add(a)
    assert await b.claim(run_id) is None
    await _claim(a, run_id)
    assert await b.claim(run_id) is None
    assert await a.claim(run_id) is None


async def test_a_settled_or_unknown_run_is_not_claimed(worker: Worker) -> None:
    rows = worker("a")
    claimed = await _claim(rows, await _add(rows))
    await rows.settle(claimed, SUCCEEDED)
    assert await rows.claim(claimed.run_id) is None
    assert await rows.claim(uuid4()) is None


async def test_a_worker_that_lost_its_run_changes_nothing(
    database: Database, worker: Worker, queries: RunQueries
) -> None:
    a, b = worker("a"), worker("b")
    lost = await _claim(a, await _add(a))
    await _end_leases(database)
    won = await _claim(b, lost.run_id)
    assert won.attempt == 2
    assert won.started_at.timestamp() >= lost.started_at.timestamp() + 1
    assert await a.settle(lost, Outcome(RunStatus.FAILED, error="late", error_type="late")) is None
    assert await b.settle(won, SUCCEEDED)
    run = await queries.get(lost.run_id)
    assert run is not None
    assert (run.status, run.error) == ("succeeded", None)


async def test_a_takeover_is_counted_once_and_so_is_the_end(
    database: Database, worker: Worker
) -> None:
    first, second = worker("a"), worker("b")
    with recording():
        run_id = await _add(first)
        lost = await _claim(first, run_id)
        await _end_leases(database)
        claimed = await _claim(second, run_id)
        await first.settle(lost, SUCCEEDED)
        await second.settle(claimed, SUCCEEDED)
        await first.cancel(run_id)
        found = scraped()
    assert found("crewcapture_run_takeovers_total", crew="idea") == 1
    assert found("crewcapture_run_queue_duration_seconds_count", crew="idea") == 1
    assert found("crewcapture_runs_ended_total", crew="idea", status="succeeded") == 1
    assert found("crewcapture_runs_ended_total") == 1
    assert found("crewcapture_run_duration_seconds_count") == 1


@pytest.mark.parametrize("is_lost", [True, False])
async def test_the_queue_knows_runs_of_lost_workers_from_those_of_stopped_ones(
    database: Database, worker: Worker, queries: RunQueries, is_lost: bool
) -> None:
    published = PublishedRuns(database, lease_seconds=60, max_failed_attempts=9)
    rows = worker("a")
    claimed = await _claim(rows, await _add(rows))
    await _end_leases(database, is_released=not is_lost)
    for _ in range(2):  # a broker may lose ids
        assert await published.hold("idea", 9) == [claimed.run_id]
        assert await published.hold("idea", 9) == []
        run = await queries.get(claimed.run_id)
        assert run is not None
        assert (run.has_lost_worker, run.executed_by) == (is_lost, None)
        await published.release()
    await published.hold("idea", 9)
    again = await _claim(worker("b"), claimed.run_id)
    assert (again.attempt, again.is_takeover) == (2, is_lost)


async def test_settling_again_after_a_lost_answer_is_safe(
    worker: Worker, queries: RunQueries
) -> None:
    rows = worker("a")
    claimed = await _claim(rows, await _add(rows))
    assert await rows.settle(claimed, SUCCEEDED)
    late = Outcome(RunStatus.FAILED, error="no", error_type="no")
    again = await rows.settle(claimed, late)
    assert again is not None
    assert again.status is RunStatus.SUCCEEDED
    run = await queries.get(claimed.run_id)
    assert run is not None
    assert run.status == "succeeded"


async def test_stalled_are_the_runs_in_flight_that_no_worker_holds(
    database: Database, worker: Worker, queries: RunQueries
) -> None:
    a = worker("a")
    queued = await _add(a)
    running = await _claim(a, await _add(a))
    settled = await _claim(a, await _add(a))
    await a.settle(settled, SUCCEEDED)
    assert await queries.stalled(["idea"], 10) == []
    await _end_leases(database)
    assert await queries.stalled(["idea"], 10) == [
        (queued, 0, 0, "", "idea", 0, ""),
        (running.run_id, 1, 1, "", "idea", 0, ""),
    ]
    assert await queries.stalled(["idea"], 1) == [(queued, 0, 0, "", "idea", 0, "")]
    await a.renew_leases({queued, running.run_id})
    assert await queries.stalled(["idea"], 10) == []
    await a.release()
    assert await queries.stalled(["idea"], 10) == [
        (queued, 0, 0, "", "idea", 0, ""),
        (running.run_id, 1, 1, "", "idea", 0, ""),
    ]


async def test_unsettled_gives_those_of_many_runs_that_are(
    worker: Worker, queries: RunQueries
) -> None:
    rows = worker("a")
    open_runs = {await _add(rows) for _ in range(3)}
    settled = await _claim(rows, await _add(rows))
    await rows.settle(settled, SUCCEEDED)
    given = open_runs | {settled.run_id} | {uuid4() for _ in range(12_000)}
    assert await queries.unsettled(given) == open_runs


def _finished(run_id: UUID, seq: int) -> Event:
    return Event(run_id, EventSeq(seq), EventType.TASK_FINISHED, {"index": 0}, datetime.now(UTC))


async def test_an_event_appended_twice_is_stored_once(worker: Worker, queries: RunQueries) -> None:
    rows = worker("a")
    run_id = await _add(rows)
    for _ in range(2):  # as after a commit whose answer was lost
        rows.append_soon(_finished(run_id, 5), webhooks_at("http://receiver.example/"))
        await rows.aclose()
    assert [event.seq for event in await queries.events([run_id])] == [0, 5]
    assert len(await queries.deliveries(run_id)) == 1


async def test_an_event_of_a_deleted_run_is_not_stored(worker: Worker, queries: RunQueries) -> None:
    rows = worker("a")
    run_id, other = await _add(rows), await _add(rows)
    await rows.cancel(run_id)
    await rows.delete(run_id)
    for one in (run_id, other):
        rows.append_soon(_finished(one, 5), webhooks_at("http://receiver.example/"))
    await rows.aclose()
    assert await queries.events([run_id]) == []
    assert await queries.deliveries(run_id) == []
    assert [event.seq for event in await queries.events([other])] == [0, 5]


async def test_json_columns_are_stored_as_ever_and_read_as_records(
    database: Database, worker: Worker, queries: RunQueries
) -> None:
    rows = worker("a")
    plain = await _claim(rows, await _add(rows))
    hooked = NewRun(
        uuid4(), "idea", {}, datetime.now(UTC), webhooks=webhooks_at("http://receiver.example/")
    )
    await rows.add([hooked])
    claimed = await _claim(rows, hooked.run_id)
    at, when = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), "2030-01-02T03:04:05Z"
    human = HumanInput(1, "of idea", 0, "draft", "writer", {0: KeptTask("text", None, at, at)})
    reviewed = human.reviewed("Fine.", approve=True)
    await rows.pause(claimed, reviewed)
    stored: Any = text("SELECT webhooks, human_input FROM user_runs WHERE run_id = :run")
    stored = stored.bindparams(bindparam("run", type_=Uuid)).columns(
        webhooks=JSON, human_input=JSON
    )
    async with database.read() as connection:
        found = [
            tuple((await connection.execute(stored, {"run": run.run_id})).one())
            for run in (plain, claimed)
        ]
    review = {"index": 0, "output": "text", "feedback": "Fine.", "approve": True}
    kept = {"text": "text", "structured": None, "started_at": when, "finished_at": when}
    assert found == [
        (None, None),
        (
            {"run": {"url": "http://receiver.example/"}},
            {
                "attempt": 1,
                "fingerprint": "of idea",
                "index": 0,
                "task": "draft",
                "agent": "writer",
                "kept": {"0": kept},
                "said": [review],
            },
        ),
    ]
    assert (plain.webhooks, plain.human_input) == ({}, None)
    run = await queries.get(claimed.run_id)
    assert run is not None
    assert run.webhooks == hooked.webhooks
    assert run.awaiting == run.human_input == reviewed
