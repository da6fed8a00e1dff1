"""The database's clock: one time for all processes, whatever their machines' clocks show."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

# CLOCK_BOOTTIME also counts while the machine sleeps. Systems without it have the next best.
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed_seconds() -> float:
    """Seconds since some moment, on a clock that can't be set."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class DatabaseClock:
    """The database's time, kept between samples by the time elapsed since.

    Until the first sample, and on SQLite always, it is the machine's time.
    """

    def __init__(self, machine_seconds: Callable[[], float] = time.time) -> None:
        """`machine_seconds` is the machine's time, in seconds since the epoch."""
        self._machine_seconds = machine_seconds
        self._ahead_seconds: float | None = None  # of `elapsed_seconds`

    def now(self) -> datetime:
        """The database's time, in UTC. Costs no query."""
        if self._ahead_seconds is None:
            return datetime.fromtimestamp(self._machine_seconds(), UTC)
        return datetime.fromtimestamp(elapsed_seconds() + self._ahead_seconds, UTC)

    def adjust(self, sampled: datetime, sent: float, received: float) -> None:
        """Set the clock by a sample, whose query was sent and received at these elapsed seconds.

        The sample was made between the two. A clock that agrees with that stays as it is, so that
        `now` does not jitter with the network. Another is set to the nearest time that agrees. The
        first sample sets the clock to the middle.
        """
        least = sampled.timestamp() - received
        most = sampled.timestamp() - sent
        if self._ahead_seconds is None:
            self._ahead_seconds = (least + most) / 2
        else:
            self._ahead_seconds = min(max(self._ahead_seconds, least), most)
