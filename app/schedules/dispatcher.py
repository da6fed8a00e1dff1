"""Submits the runs of schedules that are due, over all processes exactly one for each due time."""

import asyncio
import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from app.access.callers import Caller
from app.db import DatabaseClock, DatabaseUnavailable
from app.runs import Overloaded, PeriodicService, RunError, RunService, ShuttingDown, UnknownRun
from app.schedules.callers import ScheduleCallers
from app.schedules.records import Misfire, Overlap, Schedule
from app.schedules.repository import ScheduleRepository, advances
from app.schedules.times import next_time, times
from app.telemetry import metrics

logger = logging.getLogger("crew_capture.schedules")

_INTERVAL_SECONDS: Final = 5.0
_SCHEDULES_PER_LEASE: Final = 50
# A process that fails delays the runs of its schedules by so much.
_LEASE: Final = timedelta(seconds=10)
# How soon a due schedule is tried again that could not submit its run.
_RETRY: Final = timedelta(seconds=2)
# A due time that has passed by more is missed.
_GRACE: Final = timedelta(seconds=60)
_MAX_CAUGHT_UP: Final = 20
# After a long outage, no more of the missed times are counted.
_MAX_MISSED: Final = 10_000
# A schedule is due once its time has passed.
_MARGIN_SECONDS: Final = 0.01


class ScheduleDispatcher(PeriodicService):
    """Leases due schedules of the crews here, submits their runs, and advances them.

    The lease keeps processes from doing the same work. Exactly one run for each due time is a
    matter of the transaction that inserts the run: see `repository.advances`.
    """

    name = "dispatch of schedules"

    def __init__(
        self,
        clock: DatabaseClock,
        runs: RunService,
        schedules: ScheduleRepository,
        callers: ScheduleCallers,
        crews: Collection[str],
    ) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._clock = clock
        self._runs = runs
        self._schedules = schedules
        self._callers = callers
        self._crews = crews

    async def run_once(self) -> None:
        """Submit the runs that are due now. Raises DatabaseUnavailable: some stay due."""
        if not self._runs.accepting:
            return
        next_due = await self._schedules.next_time(self._crews)
        if next_due is not None and next_due <= self._clock.now():
            due = await self._schedules.lease_due(self._crews, _LEASE, _SCHEDULES_PER_LEASE)
            results = await asyncio.gather(*map(self._submit, due), return_exceptions=True)
            for error in filter(None, results):
                raise error
            next_due = await self._schedules.next_time(self._crews)
        if next_due is not None:
            seconds = (next_due - self._clock.now()).total_seconds() + _MARGIN_SECONDS
            if seconds < self.interval_seconds:
                asyncio.get_running_loop().call_later(max(0.0, seconds), self.wake)

    async def _submit(self, schedule: Schedule) -> None:
        """Submit the runs of a due schedule; an error is noted in its row."""
        try:
            await self._submit_due(schedule)
        except DatabaseUnavailable:
            raise
        except ShuttingDown:
            await self._postpone(schedule, timedelta())
        except Overloaded as error:
            await self._postpone(schedule, _RETRY, last_error=str(error))
        except Exception as error:
            is_known = isinstance(error, RunError)
            if not is_known:
                logger.exception("Schedule %s failed", schedule.schedule_id)
            text = str(error) if is_known else "internal error"
            metrics.SCHEDULES_DISPATCHED.inc("failed")
            await self._schedules.skip(schedule, self._following(schedule), text)

    async def _submit_due(self, schedule: Schedule) -> None:
        dues = self._dues(schedule)
        if not dues:
            missed = f"the run due at {_text(schedule.next_due)} was missed"
            await self._skip(schedule, missed)
            return
        caller = await self._callers.caller_of(schedule)
        if schedule.overlap is not Overlap.ALLOW:
            earlier = await self._runs.unsettled_of_schedule(schedule.schedule_id)
            if earlier and schedule.overlap is Overlap.SKIP:
                skipped = f"the run due at {_text(dues[-1])} was skipped: "
                await self._skip(schedule, f"{skipped}run {min(earlier)} had not ended")
                return
            if earlier and schedule.overlap is Overlap.QUEUE:
                await self._postpone(schedule, _RETRY, waits=True)
                return
            for run_id in earlier:
                try:
                    await self._runs.cancel(
                        run_id, caller, f"replaced by the run due at {_text(dues[-1])}"
                    )
                except UnknownRun:  # deleted since
                    continue
            dues = dues[-1:]  # further ones would overlap the first
        await self._submit_runs(schedule, dues, caller)

    async def _submit_runs(
        self, schedule: Schedule, dues: Sequence[datetime], caller: Caller
    ) -> None:
        """Submit a run for each of the due times, as long as the schedule is due at it."""
        is_due = schedule.next_due
        for index, due in enumerate(dues):
            following = dues[index + 1] if due is not dues[-1] else self._following(schedule)
            assert is_due is not None  # noqa: S101 - it is leased because it is due
            run = await self._runs.submit_if(
                advances(schedule, is_due, due, following),
                schedule.crew,
                schedule.inputs,
                caller,
                schedule.options(due),
            )
            if run is None:  # another process was faster, or the schedule was changed
                return
            metrics.SCHEDULES_DISPATCHED.inc("submitted")
            is_due = following

    def _dues(self, schedule: Schedule) -> Sequence[datetime]:
        """The due times that get a run now, in their order."""
        now, first = self._clock.now(), schedule.next_due
        if first is None:
            return ()
        if schedule.waits:  # for an earlier run: nothing was missed, and one run is enough
            return [first]
        later = islice(times(schedule.cron, schedule.time_zone, first), _MAX_MISSED)
        dues = [first]
        for due in later:
            if due > now:
                break
            dues.append(due)
        missed = [due for due in dues if now - due > _GRACE]
        if not missed:
            return dues
        if schedule.misfire is Misfire.SKIP:
            return dues[len(missed) :]
        return dues[-1:] if schedule.misfire is Misfire.RUN_ONCE else dues[-_MAX_CAUGHT_UP:]

    def _following(self, schedule: Schedule) -> datetime | None:
        return next_time(schedule.cron, schedule.time_zone, self._clock.now())

    async def _postpone(self, schedule: Schedule, delay: timedelta, **values: Any) -> None:
        metrics.SCHEDULES_DISPATCHED.inc("postponed")
        await self._schedules.release(schedule, delay, **values)

    async def _skip(self, schedule: Schedule, reason: str) -> None:
        metrics.SCHEDULES_DISPATCHED.inc("skipped")
        await self._schedules.skip(schedule, self._following(schedule), reason)


def _text(time: datetime | None) -> str:
    return "" if time is None else f"{time:%Y-%m-%dT%H:%M:%SZ}"
