"""The fields of requests that say when runs begin."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec

from app.runs import MAX_PRIORITY, InvalidInput

Priority = Annotated[int, msgspec.Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]
"""Of an owner's waiting runs, those with the highest priority begin first."""

# A string, because a datetime would also accept a number, and a time without its zone.
NotBefore = Annotated[str | None, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""The time at which a run begins at the earliest."""


def parse_time(name: str, text: str | None) -> datetime | None:
    """The time in a field of this name. Raises InvalidInput."""
    if text is None:
        return None
    try:
        time: datetime = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
        return time.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # in UTC, it may be outside of all years
        problem = "not a time with its zone, such as 2030-01-31T12:00:00Z"
        raise InvalidInput(name, problem) from None
