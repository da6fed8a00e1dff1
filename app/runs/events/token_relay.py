"""Model tokens between processes, by way of the database.

A process that watches a run of another says so for a while, and again as long as it watches. The
one that carries the run looks for that, and leaves the words of its models for each process that
asked; that one takes them out as it reads. So the tables hold seconds of words, of watched runs
alone; what a process that died left behind goes with the next sweep.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import MAX_IDS_PER_STATEMENT, Database, DatabaseUnavailable, insert_new
from app.runs.events.hub import Event
from app.runs.models import RelayedTokens, RunStatus, TokenWatch, UserRun

logger = logging.getLogger("crew_capture.runs")

# Clocks of machines differ, and a look may be late.
_ASKED_SECONDS: Final = 15.0
_RENEWED_SECONDS: Final = 5.0
# Longer than a group of changes outlives an outage of the database.
_LEFT_BEHIND: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Passed:
    """Words for the processes that asked for them; they follow the stored event `after_seq`."""

    event: Event
    after_seq: int
    number: int
    watchers: Sequence[str]


Place = tuple[UUID, int, int]
"""What happens in a run is told in this order: the run, a stored event's number, and 0 for that
event itself, for what follows it a number that grows."""


async def pass_on(connection: AsyncConnection, group: Sequence[Passed]) -> Sequence[None]:
    """Leave words for those who asked: an operation of group commits."""
    rows = [
        {
            "watcher": watcher,
            "run_id": passed.event.run_id,
            "after_seq": passed.after_seq,
            "number": passed.number,
            "data": passed.event.data,
            "at": passed.event.at,
        }
        for passed in group
        for watcher in passed.watchers
    ]
    await insert_new(connection, RelayedTokens, rows)
    return [None] * len(group)


class TokenRelay:
    """What this process asks of others, and others of it.

    Every method but `aclose` raises DatabaseUnavailable when the database can't be asked.
    """

    def __init__(self, database: Database, process: str) -> None:
        """`process` is what it is called as the worker of its runs."""
        self._database = database
        self._process = process
        # The runs asked for, and when to say so again, by the loop's clock.
        self._asked: dict[UUID, float] = {}
        self._taking_until = 0.0

    async def ask(self, run_ids: Set[UUID]) -> None:
        """Have the words of these runs, and of no others, left here by those who carry them."""
        now = asyncio.get_running_loop().time()
        if run_ids:  # who carries a run hears late that nobody asks any more
            self._taking_until = now + _ASKED_SECONDS
        due = {run_id for run_id in run_ids if self._asked.get(run_id, 0.0) <= now}
        old = [*due, *(self._asked.keys() - run_ids)]
        if not old:
            return
        until = datetime.now(UTC) + timedelta(seconds=_ASKED_SECONDS)
        async with self._database.write() as connection:
            for start in range(0, len(old), MAX_IDS_PER_STATEMENT):
                chunk = old[start : start + MAX_IDS_PER_STATEMENT]
                mine = TokenWatch.watcher == self._process
                await connection.execute(
                    delete(TokenWatch).where(mine, TokenWatch.run_id.in_(chunk))
                )
            await insert_new(
                connection,
                TokenWatch,
                [{"run_id": id_, "watcher": self._process, "until": until} for id_ in due],
            )
        again = now + _RENEWED_SECONDS
        self._asked = {id_: again if id_ in due else self._asked[id_] for id_ in run_ids}

    async def asked(self) -> Mapping[UUID, Sequence[str]]:
        """The runs that this process carries and others watch, with the names of those."""
        query = (
            select(TokenWatch.run_id, TokenWatch.watcher)
            .join(UserRun, UserRun.run_id == TokenWatch.run_id)
            .where(
                UserRun.worker == self._process,
                UserRun.status == RunStatus.RUNNING,
                TokenWatch.until > datetime.now(UTC),
            )
        )
        watchers = defaultdict(list)
        async with self._database.read() as connection:
            for run_id, watcher in await connection.execute(query):
                watchers[run_id].append(watcher)
        return watchers

    async def take(self) -> list[tuple[Place, Event]]:
        """Take out what was left here. Asks the database only while there may be something."""
        if asyncio.get_running_loop().time() >= self._taking_until:
            return []
        async with self._database.write() as connection:
            rows = await connection.execute(
                delete(RelayedTokens)
                .where(RelayedTokens.watcher == self._process)
                .returning(*RelayedTokens.__table__.columns)
            )
            return [
                (
                    (row.run_id, row.after_seq, row.number),
                    Event(row.run_id, None, "task.tokens", row.data, row.at),
                )
                for row in rows
            ]

    async def sweep(self) -> None:
        """Remove what processes that are gone have left behind."""
        now = datetime.now(UTC)
        async with self._database.write() as connection:
            await connection.execute(delete(TokenWatch).where(TokenWatch.until < now))
            await connection.execute(
                delete(RelayedTokens).where(RelayedTokens.at < now - _LEFT_BEHIND)
            )

    async def aclose(self) -> None:
        """Ask for nothing any more, and take out what was left here."""
        if not self._taking_until:
            return
        try:
            await self.ask(set())
            await self.take()
        except DatabaseUnavailable:
            logger.debug("The database is away: the next sweep removes what was asked for")
