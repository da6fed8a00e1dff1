"""How many requests a caller may make, counted in the database for all processes.

Answers tell it by the fields `RateLimit-Limit`, `RateLimit-Remaining` and `RateLimit-Reset` (the
IETF draft's seventh version, which clients know), for the limit that is closest to its end.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from limits import RateLimitItem
from litestar.exceptions import TooManyRequestsException
from sqlalchemy import BigInteger, String, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Database, GroupCommit, UtcDateTime

# The share of counts after which those of past windows are deleted.
_FORGET_PROBABILITY = 0.01


class RateCount(Base):
    """The requests of one caller in one window of time."""

    __tablename__ = "rate_counts"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    ends_at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True, slots=True)
class _Window:
    name: str
    limit: int
    seconds: int
    ends_at: int

    def headers(self, left: int, now: float) -> dict[str, str]:
        seconds = max(1, math.ceil(self.ends_at - now))
        return limit_headers(self.limit, left, seconds)


def limit_headers(limit: int, remaining: int, reset_seconds: int) -> dict[str, str]:
    """What an answer tells of a limit; an exhausted one, when to come again."""
    return {
        "RateLimit-Limit": str(limit),
        "RateLimit-Remaining": str(max(0, remaining)),
        "RateLimit-Reset": str(reset_seconds),
    } | ({"Retry-After": str(reset_seconds)} if remaining < 0 else {})


class RateLimits:
    """Counts requests in windows of fixed time."""

    def __init__(self, database: Database, rates: Sequence[RateLimitItem]) -> None:
        self._rates = rates
        self._clock = database.clock
        self._is_sqlite = database.is_sqlite
        self._writes = GroupCommit(database)

    async def count(self, callers: Sequence[str]) -> Mapping[str, str]:
        """Count a request of these callers; the headers that tell what is left.

        Raises:
            TooManyRequestsException: one of them has made as many as it may; it has the headers.
            DatabaseUnavailable: the database can't be asked.
        """
        windows = list(self._windows(callers))
        counts = await self._writes.submit(self._count_all, windows)
        left = [window.limit - count for window, count in zip(windows, counts, strict=True)]
        standing = list(zip(windows, left, strict=True))
        now = self._clock.now().timestamp()
        if exceeded := [each for each in standing if each[1] < 0]:
            window, missing = max(exceeded, key=lambda each: each[0].ends_at)
            problem = f"more than {window.limit} requests in {window.seconds} s"
            raise TooManyRequestsException(problem, headers=window.headers(missing, now))
        window, least = min(standing, key=lambda each: each[1])
        return window.headers(least, now)

    async def aclose(self) -> None:
        await self._writes.aclose()

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
            for name, end in sorted(ends.items())  # in one order: no deadlock
        ]
        insert: Any = (sqlite if self._is_sqlite else postgresql).insert(RateCount).values(rows)
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
