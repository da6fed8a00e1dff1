"""Work on a database on demand: from a shell or a scheduler, also while the service runs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from app.access.callers import OPERATOR
from app.resources import open_database, open_store
from app.runs import (
    CallRecord,
    LiveWorker,
    Run,
    RunFilter,
    RunPage,
    RunStatus,
    UsageFilter,
    UsageRow,
)
from app.runs.events.hub import EventHub
from app.runs.execution.checkpoints import usage_in
from app.runs.maintenance.retention import purge
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.persistence.usage_totals import UsageTotals
from app.runs.persistence.workers import WorkerRepository
from app.runs.records import CANCELLED
from app.schedules import Schedule, SchedulePage
from app.schedules.repository import ScheduleRepository
from app.settings import Settings, load_settings
from storage import SweepReport


def cleanup_old_temp_files(max_age_hours: float | None = None) -> SweepReport:
    """Remove stored outputs older than `max_age_hours` (by default CLEANUP_MAX_AGE_HOURS).

    Outputs of unsettled runs are kept, except with 0: that removes everything, at once.
    Call it from synchronous code or within a running event loop; it blocks either way.

    Raises:
        SettingsError, DatabaseUnavailable, StorageError: nothing was removed.
    """
    settings = load_settings()
    hours = settings.cleanup_max_age_hours if max_age_hours is None else max_age_hours
    with ThreadPoolExecutor(1) as thread:  # the caller's thread may run an event loop
        return thread.submit(asyncio.run, sweep_by_hand(settings, hours)).result()


async def sweep_by_hand(settings: Settings, max_age_hours: float) -> SweepReport:
    """The asynchronous form of `cleanup_old_temp_files`."""
    if max_age_hours < 0:
        raise ValueError(f"max_age_hours={max_age_hours:g}: must be 0 or more")
    async with open_database(settings) as database, open_store(settings, database) as store:
        keep = RunQueries(database).unsettled if max_age_hours > 0 else None
        return await store.sweep(max_age_hours * 3600, find_needed=keep)


async def purge_by_hand(settings: Settings, days: float) -> int:
    """Remove runs that were settled more than `days` ago; returns how many."""
    async with open_database(settings) as database:
        return await purge(database, timedelta(days=days))


async def find_runs(
    settings: Settings, *, status: str | None = None, crew: str | None = None, limit: int
) -> RunPage:
    """The newest runs of all owners, at most `limit`; those in a state, or of a crew."""
    matching = RunFilter(statuses=(RunStatus(status),) if status else (), crew=crew)
    async with open_database(settings) as database:
        return await RunQueries(database).page(matching, None, limit)


async def find_run(settings: Settings, run_id: UUID) -> Run | None:
    """The run as it stands; None if there is none."""
    async with open_database(settings) as database:
        return await RunQueries(database).get(run_id)


async def find_calls(settings: Settings, run_id: UUID) -> list[CallRecord]:
    """The stored calls of a run to models and tools, in the order of their starts."""
    async with open_database(settings) as database:
        calls = await RunQueries(database).calls(run_id)
        return [calls[position] for position in sorted(calls)]


async def find_usage(
    settings: Settings, matching: UsageFilter, group_by: Sequence[str]
) -> list[UsageRow]:
    """The usage of all owners' runs by these groups."""
    async with open_database(settings) as database:
        return await UsageTotals(database).query(matching, group_by)


async def find_schedules(settings: Settings, limit: int) -> SchedulePage:
    """The newest schedules of all owners, at most `limit`."""
    async with open_database(settings) as database:
        return await ScheduleRepository(database).page(OPERATOR, None, limit)


async def find_schedule(settings: Settings, schedule_id: UUID) -> Schedule | None:
    """The schedule as it stands; None if there is none."""
    async with open_database(settings) as database:
        return await ScheduleRepository(database).get(schedule_id)


async def set_paused(settings: Settings, schedule_id: UUID, *, paused: bool) -> Schedule | None:
    """Pause or resume a schedule; returns it as it stands then, None if there is none."""
    async with open_database(settings) as database:
        schedules = ScheduleRepository(database)
        await schedules.set_paused(schedule_id, paused=paused)
        return await schedules.get(schedule_id)


async def request_schedule(settings: Settings, schedule_id: UUID) -> bool:
    """Make a schedule due now; False if it is paused or unknown."""
    async with open_database(settings) as database:
        return await ScheduleRepository(database).request(schedule_id)


async def delete_schedule(settings: Settings, schedule_id: UUID) -> bool:
    """Delete a schedule; False if there is none."""
    async with open_database(settings) as database:
        return await ScheduleRepository(database).delete(schedule_id)


async def cancel_by_hand(settings: Settings, run_id: UUID) -> RunStatus | None:
    """Cancel a run unless it is settled; its status then, None if there is no such run.

    The process that executes it stops it, saves the outputs of its finished tasks, and deletes them
    from the store. Without such a process, a sweep deletes them.
    """
    async with _open_rows(settings) as (queries, rows):
        usage = usage_in(await queries.history(run_id))
        return await rows.cancel(run_id, replace(CANCELLED, usage=usage))


async def retry_by_hand(settings: Settings, run_id: UUID) -> tuple[RunStatus | None, bool]:
    """Queue a failed or cancelled run again, for the service that has its crew.

    Returns its status then, None if there is no such run, and whether this has queued it.
    """
    async with _open_rows(settings) as (_, rows):
        retried = await rows.retry(run_id, OPERATOR)
        return retried.status, retried.event is not None


async def find_workers(settings: Settings) -> Sequence[LiveWorker]:
    """The live workers of all machines."""
    async with open_database(settings) as database:
        return await WorkerRepository(database).live()


async def drain_by_hand(settings: Settings, worker: str) -> bool:
    """Make a worker drain; False if no live worker has this name."""
    async with open_database(settings) as database:
        return await WorkerRepository(database).drain(worker)


@asynccontextmanager
async def _open_rows(settings: Settings) -> AsyncGenerator[tuple[RunQueries, RunRepository]]:
    """The runs of the database, for a process that executes none: it holds no lease."""
    async with open_database(settings) as database:
        rows = RunRepository(database, EventHub(), lambda _crew: None, worker="", lease_seconds=0)
        try:
            yield RunQueries(database), rows
        finally:
            await rows.aclose()
