"""The service of schedules: create, inspect, list, change, pause, resume, run now, delete.

All entry points call it and pass a `Caller`: a schedule of another owner is an unknown schedule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from app.access.callers import Caller
from app.db import DatabaseClock
from app.runs import Run, RunService, clean_text, time_ordered_id
from app.schedules.callers import ScheduleCallers
from app.schedules.records import (
    MAX_NAME_CHARACTERS,
    Schedule,
    SchedulePage,
    UnknownSchedule,
)
from app.schedules.repository import ScheduleRepository
from app.schedules.times import check_times, next_time, next_times

_TIMES = ("cron", "time_zone", "paused")


class ScheduleService:
    """Every method raises DatabaseUnavailable when the database can't be queried."""

    def __init__(
        self,
        clock: DatabaseClock,
        runs: RunService,
        schedules: ScheduleRepository,
        callers: ScheduleCallers,
    ) -> None:
        self._clock = clock
        self._runs = runs
        self._schedules = schedules
        self._callers = callers

    async def create(self, values: Mapping[str, Any], caller: Caller) -> Schedule:
        """Create a schedule of the caller's with these fields, and return it as it stands.

        Raises:
            UnknownCrew: no crew of this name is registered.
            InvalidInput: the expression, the time zone, or what a run would refuse.
            LimitReached: the caller has too many schedules.
        """
        now = self._clock.now()
        schedule = Schedule(
            schedule_id=time_ordered_id(now),
            owner=caller.owner or "",
            end_user=caller.end_user,
            address=caller.address,
            created_at=now,
            **values,
        )
        schedule = await self._checked(schedule, caller)
        await self._schedules.add(schedule)
        return schedule

    async def get(self, schedule_id: UUID, caller: Caller) -> Schedule:
        """The schedule as it stands. Raises UnknownSchedule."""
        schedule = await self._schedules.get(schedule_id)
        if schedule is None or not caller.may_see(schedule.owner, schedule.end_user):
            raise UnknownSchedule(schedule_id)
        return schedule

    async def page(self, cursor: str | None, limit: int, caller: Caller) -> SchedulePage:
        """The caller's schedules, newest first; all for an admin. Raises InvalidInput."""
        return await self._schedules.page(caller, cursor, limit)

    async def change(
        self, schedule_id: UUID, changes: Mapping[str, Any], caller: Caller
    ) -> Schedule:
        """Change fields of a schedule, and return it as it stands.

        New times, and the end of a pause, count from now: earlier due times have no run. Raises
        UnknownSchedule, and what `create` raises.
        """
        schedule = await self.get(schedule_id, caller)
        changed = await self._checked(replace(schedule, **changes), caller)
        values = dict(changes)
        if any(name in changes for name in _TIMES):
            values |= {"next_due": changed.next_due, "waits": False, "lease_until": None}
        if values and not await self._schedules.change(schedule_id, values):
            raise UnknownSchedule(schedule_id)
        return await self.get(schedule_id, caller)

    async def delete(self, schedule_id: UUID, caller: Caller) -> None:
        """Delete a schedule; its runs stay. Raises UnknownSchedule."""
        await self.get(schedule_id, caller)
        if not await self._schedules.delete(schedule_id):
            raise UnknownSchedule(schedule_id)

    async def run_now(self, schedule_id: UUID, caller: Caller) -> Run:
        """Submit a run of the schedule now, for its owner. Its times stay as they are.

        Raises UnknownSchedule, and what `RunService.submit` raises.
        """
        schedule = await self.get(schedule_id, caller)
        owner = await self._callers.caller_of(schedule)
        return await self._runs.submit(
            schedule.crew, schedule.inputs, owner, schedule.options(None)
        )

    async def times(self, schedule_id: UUID, count: int, caller: Caller) -> Sequence[datetime]:
        """The next times of the schedule, also while it is paused. Raises UnknownSchedule."""
        schedule = await self.get(schedule_id, caller)
        return next_times(schedule.cron, schedule.time_zone, self._clock.now(), count)

    async def _checked(self, schedule: Schedule, caller: Caller) -> Schedule:
        """The schedule with its next due time. Raises UnknownCrew, InvalidInput."""
        now = self._clock.now()
        clean_text(schedule.name, "name", MAX_NAME_CHARACTERS)
        check_times(schedule.cron, schedule.time_zone, now)
        await self._runs.check(schedule.crew, schedule.inputs, caller, schedule.options(None))
        due = None if schedule.paused else next_time(schedule.cron, schedule.time_zone, now)
        return replace(schedule, next_due=due)
