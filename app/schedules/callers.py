"""The callers on whose behalf schedules submit runs: their owners, with their limits of the day."""

from dataclasses import replace

from app.access.api_keys import ApiKeys, caller_of
from app.access.callers import Caller, Quota
from app.runs import RunError
from app.schedules.records import Schedule


class OwnerGone(RunError):
    """The API key that owns a schedule is revoked."""


class ScheduleCallers:
    """Gives the caller of a schedule, with the limits that its key has now."""

    def __init__(self, keys: ApiKeys, quota: Quota | None) -> None:
        """`quota` is the default quota of a caller."""
        self._keys = keys
        self._quota = quota

    async def caller_of(self, schedule: Schedule) -> Caller:
        """The owner of a schedule as a caller. Raises OwnerGone, DatabaseUnavailable."""
        if not schedule.owner:  # keys were off as it was created
            return Caller(
                None,
                is_admin=True,
                address=schedule.address,
                quota=self._quota,
                end_user=schedule.end_user,
            )
        key = await self._keys.get(schedule.owner)
        if key is None:
            raise OwnerGone(f"the API key {schedule.owner} of this schedule is revoked")
        caller = caller_of(key, schedule.address, self._quota)
        return replace(caller, end_user=schedule.end_user)
