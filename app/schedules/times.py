"""The times of a cron expression in a time zone.

Clock changes are handled as by Debian's cron. A time of day that does not exist on a day is due as
soon as the missing hour is over. A time of day that exists twice is due once. Expressions whose
minute or hour begins with `*` follow the hours that really pass.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from app.runs import InvalidInput, clean_text
from app.sentences import uncapitalized

_MAX_CRON_CHARACTERS = 100
_MAX_ZONE_CHARACTERS = 64


def check_times(cron: str, time_zone: str, now: datetime) -> None:
    """Raise InvalidInput for a wrong expression or time zone, or an expression without a time."""
    clean_text(time_zone, "time_zone", _MAX_ZONE_CHARACTERS)
    try:
        ZoneInfo(time_zone)
    except (KeyError, ValueError, OSError):
        problem = "no name of a time zone, such as UTC or Europe/Berlin"
        raise InvalidInput("time_zone", problem) from None
    clean_text(cron, "cron", _MAX_CRON_CHARACTERS)
    if len(cron.split()) != 5:
        problem = "must have five fields: minute, hour, day of month, month, day of week"
        raise InvalidInput("cron", problem)
    try:
        CronSim(cron, now)
    except (CronSimError, ValueError) as error:
        problem = uncapitalized(str(error))
        raise InvalidInput("cron", f"{problem}; an example is 0 9 * * MON-FRI") from None
    if next_time(cron, time_zone, now) is None:
        raise InvalidInput("cron", "has no time within 50 years")


def next_time(cron: str, time_zone: str, after: datetime) -> datetime | None:
    """The first time after this one, in UTC; None if there is none."""
    return next(times(cron, time_zone, after), None)


def next_times(cron: str, time_zone: str, after: datetime, count: int) -> list[datetime]:
    """The first times after this one, in UTC; fewer if there are no more."""
    return list(islice(times(cron, time_zone, after), count))


def times(cron: str, time_zone: str, after: datetime) -> Iterator[datetime]:
    """The times after this one, in UTC, in their order."""
    last = after
    for time in CronSim(cron, after.astimezone(ZoneInfo(time_zone))):
        due = time.astimezone(UTC)
        # In an hour that exists twice, local times repeat; two of them may be due at one time.
        if due > last:
            yield due
            last = due


def description(cron: str) -> str:
    """The expression in English, such as "At 09:00 every day"."""
    text: str = CronSim(cron, datetime.now(UTC)).explain()
    return text
