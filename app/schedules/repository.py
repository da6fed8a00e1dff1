"""The rows of schedules: created, changed, leased when they are due, and advanced."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Row, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller
from app.db import Database
from app.runs import LimitReached
from app.runs.persistence.pages import cursor_of, id_of, visible_to
from app.runs.persistence.submissions import Condition
from app.schedules.models import ScheduleRow
from app.schedules.records import (
    MAX_SCHEDULES,
    Misfire,
    Overlap,
    Schedule,
    SchedulePage,
)
from app.schedules.times import next_time

_METADATA: Final = {"metadata": ScheduleRow.run_metadata.label("metadata")}
_COLUMNS: Final[tuple[Any, ...]] = tuple(
    _METADATA.get(name, getattr(ScheduleRow, name, None)) for name in Schedule.__dataclass_fields__
)
_RETRY_SECONDS: Final = 3600


class ScheduleRepository:
    """Every method raises DatabaseUnavailable when the database can't be queried."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, schedule: Schedule) -> None:
        """Insert a schedule. Raises LimitReached: its owner has `MAX_SCHEDULES` already."""
        values = {name: getattr(schedule, name) for name in Schedule.__dataclass_fields__}
        count = select(func.count()).where(ScheduleRow.owner == schedule.owner)
        async with self._database.write() as connection:
            if (await connection.scalar(count) or 0) >= MAX_SCHEDULES:
                problem = f"a caller has at most {MAX_SCHEDULES:,} schedules; delete one"
                raise LimitReached(problem, limit=MAX_SCHEDULES, retry_after_seconds=_RETRY_SECONDS)
            await connection.execute(insert(ScheduleRow).values(_columns(values)))

    async def get(self, schedule_id: UUID) -> Schedule | None:
        """The schedule as it stands; None if there is none."""
        query = select(*_COLUMNS).where(ScheduleRow.schedule_id == schedule_id)
        async with self._database.read() as connection:
            row = (await connection.execute(query)).one_or_none()
            return None if row is None else _schedule(row)

    async def page(self, caller: Caller, cursor: str | None, limit: int) -> SchedulePage:
        """Schedules that the caller sees, newest first. Raises InvalidInput: the cursor."""
        query = select(*_COLUMNS).order_by(ScheduleRow.schedule_id.desc()).limit(limit + 1)
        query = query.where(*visible_to(caller, ScheduleRow))
        if cursor is not None:
            query = query.where(ScheduleRow.schedule_id < id_of(cursor))
        async with self._database.read() as connection:
            found = [_schedule(row) for row in await connection.execute(query)]
        schedules = found[:limit]
        more = len(found) > limit
        return SchedulePage(schedules, cursor_of(schedules[-1].schedule_id) if more else None)

    async def change(self, schedule_id: UUID, values: Mapping[str, Any]) -> bool:
        """Change fields of a schedule; False if it is unknown."""
        return await self._change(values, ScheduleRow.schedule_id == schedule_id)

    async def set_paused(self, schedule_id: UUID, *, paused: bool) -> None:
        """Pause a schedule, or resume it: its next time then counts from now."""
        schedule = await self.get(schedule_id)
        if schedule is not None:
            now, due = self._database.clock.now(), None
            if not paused:
                due = next_time(schedule.cron, schedule.time_zone, now)
            values = {"paused": paused, "next_due": due, "waits": False, "lease_until": None}
            await self.change(schedule_id, values)

    async def delete(self, schedule_id: UUID) -> bool:
        """Delete a schedule; its runs stay. False if it is unknown."""
        statement = delete(ScheduleRow).where(ScheduleRow.schedule_id == schedule_id)
        async with self._database.write() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def next_time(self, crews: Collection[str]) -> datetime | None:
        """The time at which a schedule of these crews is due next, or its lease ends."""
        now = self._database.clock.now()
        pending = select(ScheduleRow.next_due, ScheduleRow.lease_until).where(
            ScheduleRow.next_due.is_not(None), ScheduleRow.crew.in_(crews)
        )
        # They are few: schedules that processes submit runs of at this moment.
        leased = pending.where(ScheduleRow.next_due <= now, ScheduleRow.lease_until >= now)
        free = pending.where(_is_free(now)).order_by(ScheduleRow.next_due).limit(1)
        async with self._database.read() as connection:
            rows = [*await connection.execute(leased), *await connection.execute(free)]
        return min((max(due, lease or due) for due, lease in rows), default=None)

    async def lease_due(
        self, crews: Collection[str], duration: timedelta, limit: int
    ) -> list[Schedule]:
        """Lease schedules of these crews that are due: no other process gets them until then."""
        now = self._database.clock.now()
        due = (
            select(ScheduleRow.schedule_id)
            .where(ScheduleRow.next_due <= now, ScheduleRow.crew.in_(crews), _is_free(now))
            .order_by(ScheduleRow.next_due)
            .limit(limit)
            .with_for_update(skip_locked=True)  # SQLite leaves it out; its transaction is exclusive
        )
        async with self._database.write() as connection:
            ids = list(await connection.scalars(due))
            leases = update(ScheduleRow).where(ScheduleRow.schedule_id.in_(ids))
            await connection.execute(leases.values(lease_until=now + duration))
            leased = select(*_COLUMNS).where(ScheduleRow.schedule_id.in_(ids))
            return [_schedule(row) for row in await connection.execute(leased)]

    async def release(self, schedule: Schedule, delay: timedelta, **values: Any) -> None:
        """Leave a schedule due, for any process to lease after the delay; sets `values`."""
        until = self._database.clock.now() + delay
        await self._change({"lease_until": until, **values}, *_is_still_due(schedule))

    async def skip(self, schedule: Schedule, following: datetime | None, error: str) -> None:
        """Note why a due time has no run, and advance the schedule, if it is still due."""
        values = {"next_due": following, "waits": False, "lease_until": None}
        await self._change(values, *_is_still_due(schedule))
        await self.change(schedule.schedule_id, {"last_error": error})

    async def request(self, schedule_id: UUID) -> bool:
        """Make a schedule due now; False if it is unknown or paused."""
        now = self._database.clock.now()
        is_active = (ScheduleRow.schedule_id == schedule_id, ScheduleRow.paused.is_(False))
        return await self._change({"next_due": now}, *is_active)

    async def _change(self, values: Mapping[str, Any], *which: ColumnElement[bool]) -> bool:
        statement = update(ScheduleRow).where(*which).values(_columns(values))
        async with self._database.write() as connection:
            return bool((await connection.execute(statement)).rowcount)


def advances(
    schedule: Schedule, next_due: datetime, due: datetime, following: datetime | None
) -> Condition:
    """The condition of a run for the time `due`: `next_due` is what the schedule is due at.

    It advances the schedule to `following` in the transaction that inserts the run, so that each
    due time has exactly one run, whichever processes try.
    """
    is_due = (
        ScheduleRow.schedule_id == schedule.schedule_id,
        ScheduleRow.next_due == next_due,
        ScheduleRow.paused.is_(False),
    )
    values = {
        "next_due": following,
        "last_due": due,
        "waits": False,
        "lease_until": None,
        "last_error": None,
    }

    async def advance(connection: AsyncConnection) -> bool:
        advanced = update(ScheduleRow).where(*is_due).values(values)
        return bool((await connection.execute(advanced)).rowcount)

    return advance


def _is_free(now: datetime) -> ColumnElement[bool]:
    return or_(ScheduleRow.lease_until.is_(None), ScheduleRow.lease_until < now)


def _is_still_due(schedule: Schedule) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (
        ScheduleRow.schedule_id == schedule.schedule_id,
        ScheduleRow.next_due == schedule.next_due,
    )


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the names of their columns."""
    return {"run_metadata" if name == "metadata" else name: v for name, v in values.items()}


def _schedule(row: Row[Any]) -> Schedule:
    kinds = {"misfire": Misfire(row.misfire), "overlap": Overlap(row.overlap)}
    return Schedule(**{**row._mapping, **kinds})
