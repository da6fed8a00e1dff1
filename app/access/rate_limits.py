"""Rate limits: how many requests a caller may make, counted in the database for all processes.

Responses report the limit that is closest to exhaustion, in the fields `RateLimit-Limit`,
`RateLimit-Remaining` and `RateLimit-Reset` of the IETF draft's seventh version.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from limits import RateLimitItem
from sqlalchemy import BigInteger, String, delete
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from app.access.errors import RateLimitExceeded
from app.db import Base, Database, GroupCommit, UtcDateTime, insert_into

# The share of transactions that also delete the counts of past windows.
_FORGET_PROBABILITY = 0.01


class RateCount(Base):
    """The requests of one caller in one window."""

    __tablename__ = "rate_counts"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    ends_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True, slots=True)
class _Window:
    """A fixed window: requests of one caller count together until `ends_at`."""

    name: str
    limit: int
    seconds: int
    ends_at: int


def limit_headers(limit: int, remaining: int, reset_seconds: int) -> dict[str, str]:
    """The header fields that report a limit; `Retry-After` if it is exceeded (`remaining` < 0)."""
    return {
        "RateLimit-Limit": str(limit),
        "RateLimit-Remaining": str(max(0, remaining)),
        "RateLimit-Reset": str(reset_seconds),
    } | ({"Retry-After": str(reset_seconds)} if remaining < 0 else {})


class RateLimits:
    """Counts requests in fixed windows of the database's time."""

    def __init__(self, database: Database, rates: Sequence[RateLimitItem]) -> None:
        self._rates = rates
        self._clock = database.clock
        self._writes = GroupCommit(database)

    async def count(self, callers: Sequence[str]) -> Mapping[str, str]:
        """Count a request of these callers; returns the header fields that report the limits.

        Raises:
            RateLimitExceeded: one of the callers has made as many requests as it may.
            DatabaseUnavailable: the request was not counted.
        """
        windows = list(self._windows(callers))
        counts = await self._writes.submit(self._count_all, windows)
        left = [window.limit - count for window, count in zip(windows, counts, strict=True)]
        standing = list(zip(windows, left, strict=True))
        if exceeded := [window for window, remaining in standing if remaining < 0]:
            window = max(exceeded, key=lambda each: each.ends_at)
            problem = f"more than {window.limit} requests in {window.seconds} s"
            seconds = self._seconds_left(window)
            raise RateLimitExceeded(problem, limit=window.limit, retry_after_seconds=seconds)
        window, least = min(standing, key=lambda each: each[1])
        return limit_headers(window.limit, least, self._seconds_left(window))

    async def aclose(self) -> None:
        """Wait for the counts under way."""
        await self._writes.aclose()

    def _seconds_left(self, window: _Window) -> int:
        return max(1, math.ceil(window.ends_at - self._clock.now().timestamp()))

    def _windows(self, callers: Sequence[str]) -> Iterator[_Window]:
        now = int(self._clock.now().timestamp())
        for rate in self._rates:
            seconds = rate.get_expiry()
            ends_at = now - now % seconds + seconds
            for caller in callers:
                yield _Window(f"{seconds} {ends_at} {caller}", rate.amount, seconds, ends_at)

    async def _count_all(
        self, connection: AsyncConnection, requests: Sequence[Sequence[_Window]]
    ) -> Sequence[Sequence[int]]:
        more = Counter(window.name for windows in requests for window in windows)
        ends = {window.name: window.ends_at for windows in requests for window in windows}
        rows = [
            {"name": name, "requests": more[name], "ends_at": datetime.fromtimestamp(end, UTC)}
            for name, end in sorted(ends.items())  # locked in one order: no deadlock
        ]
        insert = insert_into(connection, RateCount).values(rows)
        added = insert.on_conflict_do_update(
            index_elements=[RateCount.name],
            set_={"requests": RateCount.requests + insert.excluded.requests},
        ).returning(RateCount.name, RateCount.requests)
        before = {name: sum_ - more[name] for name, sum_ in await connection.execute(added)}
        if random.random() < _FORGET_PROBABILITY:  # noqa: S311 - not a secret
            past = RateCount.ends_at < self._clock.now()
            await connection.execute(delete(RateCount).where(past))
        return [[_next(before, window.name) for window in windows] for windows in requests]


def _next(counts: dict[str, int], name: str) -> int:
    counts[name] += 1
    return counts[name]
