"""Filters of lists: the same runs on each kind of database, and pages that stay stable."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from app.db import Database
from app.runs.events.hub import EventHub
from app.runs.models import UserRun
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.records import NewRun, RunFilter, RunStatus

_BEGUN = datetime(2030, 1, 1, tzinfo=UTC)
# A cost beyond 32 bits: 5 USD in nano-dollars.
_FIVE_USD = 5 * 10**9
# About the longest text whose JSON a list reads as a whole.
_LENGTHS = range(997, 1001)


@pytest.fixture
async def rows(database: Database) -> AsyncIterator[RunRepository]:
    rows = RunRepository(database, EventHub(), str, worker="a", lease_seconds=60)
    yield rows
    await rows.aclose()


async def _add(rows: RunRepository, database: Database, **values: object) -> UUID:
    """A run as it stands with these values."""
    run = NewRun(uuid4(), "idea", {}, _BEGUN)
    await rows.add([run])
    if values:
        async with database.write() as connection:
            changed = update(UserRun).where(UserRun.run_id == run.run_id)
            await connection.execute(changed.values(**values))
    return run.run_id


async def _listed(database: Database, **matching: object) -> set[UUID]:
    page = await RunQueries(database).page(RunFilter(**matching), None, 50)  # type: ignore[arg-type]
    return {run.run_id for run in page.runs}


async def test_cost_bounds_are_inclusive(rows: RunRepository, database: Database) -> None:
    cheap = await _add(rows, database, usage={"cost_nano_usd": 7})
    dear = await _add(rows, database, usage={"cost_nano_usd": _FIVE_USD})
    await _add(rows, database, usage={"total_tokens": 9})
    await _add(rows, database)
    assert await _listed(database, cost_from=0) == {cheap, dear}
    assert await _listed(database, cost_from=8) == {dear}
    assert await _listed(database, cost_from=_FIVE_USD) == {dear}
    assert await _listed(database, cost_from=_FIVE_USD + 1) == set()
    assert await _listed(database, cost_to=7) == {cheap}
    assert await _listed(database, cost_from=7, cost_to=_FIVE_USD) == {cheap, dear}


async def test_a_list_has_the_start_of_the_result(rows: RunRepository, database: Database) -> None:
    texts = ["short", 'a "quote" \\', "é🙂" * 900, '\n"' * 900, "\\" * 900]
    for text in [*texts, *("x" * length for length in _LENGTHS)]:
        run_id = await _add(rows, database, raw_result=text)
        (run,) = (await RunQueries(database).page(RunFilter(run_ids=[run_id]), None, 1)).runs
        assert run.raw_result is not None
        assert text.startswith(run.raw_result)
        assert len(run.raw_result) == len(text) or len(run.raw_result) > 150
        whole = await RunQueries(database).get(run_id)
        assert whole is not None
        assert whole.raw_result == text


async def test_durations_are_those_of_ended_runs(rows: RunRepository, database: Database) -> None:
    def lasting(seconds: float) -> dict[str, datetime]:
        return {"started_at": _BEGUN, "finished_at": _BEGUN + timedelta(seconds=seconds)}

    short = await _add(rows, database, **lasting(1.5))
    long = await _add(rows, database, **lasting(90_000.25))
    await _add(rows, database, started_at=_BEGUN)
    await _add(rows, database, finished_at=_BEGUN)
    assert await _listed(database, seconds_from=0) == {short, long}
    assert await _listed(database, seconds_from=1.4, seconds_to=1.6) == {short}
    assert await _listed(database, seconds_from=90_000) == {long}
    assert await _listed(database, seconds_to=90_000.5) == {short, long}
    assert await _listed(database, seconds_from=90_001) == set()


async def test_runs_are_found_by_error_owner_and_id(
    rows: RunRepository, database: Database
) -> None:
    failed = await _add(rows, database, error_type="model_error", status="failed", owner="anna")
    lost = await _add(rows, database, error_type="worker_lost", status="failed", owner="berta")
    fine = await _add(rows, database, status="succeeded", owner="anna")
    assert await _listed(database, error_type="model_error") == {failed}
    assert await _listed(database, error_type="other") == set()
    assert await _listed(database, owner="anna") == {failed, fine}
    assert await _listed(database, run_ids=(lost, fine, uuid4())) == {lost, fine}
    both = (RunStatus.FAILED, RunStatus.SUCCEEDED)
    assert await _listed(database, statuses=both, owner="anna") == {failed, fine}


async def test_pages_of_a_filtered_list_neither_repeat_nor_skip_runs(
    rows: RunRepository, database: Database
) -> None:
    """Runs of one time, and runs that are submitted between two pages."""
    failed = [await _add(rows, database, error_type="model_error") for _ in range(7)]
    matching, queries = RunFilter(error_type="model_error"), RunQueries(database)
    seen: list[UUID] = []
    cursor = None
    while not seen or cursor:
        page = await queries.page(matching, cursor, 3)
        seen += [run.run_id for run in page.runs]
        cursor = page.next_cursor
        newer = _BEGUN + timedelta(hours=1)
        await _add(rows, database, error_type="model_error", created_at=newer)
        await _add(rows, database)
    assert sorted(seen) == sorted(failed)
