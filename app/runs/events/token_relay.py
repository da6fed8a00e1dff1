"""Relays model tokens between processes, through the database.

A process with subscribers to a run of another process stores a subscription, and renews it while
they last. The process that executes the run polls the subscriptions, and stores tokens for each
subscribed process, which deletes them as it reads. So the tables hold seconds of tokens, of
subscribed runs alone. The next sweep removes what a process that died has left behind.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import MAX_IDS_PER_STATEMENT, Database, DatabaseUnavailable, in_parts, insert_new
from app.runs.events.event import Event, EventType
from app.runs.models import RelayedTokens, TokenSubscription, UserRun
from app.runs.records import RunStatus

logger = logging.getLogger("crew_capture.runs")

# A poll may be late.
_SUBSCRIBED_SECONDS: Final = 15.0
_RENEWED_SECONDS: Final = 5.0
# Longer than GroupCommit keeps changes while the database is away.
_LEFT_BEHIND: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Relay:
    """Tokens for subscribed processes; they follow the stored event `after_seq`."""

    event: Event
    after_seq: int
    number: int
    subscribers: Sequence[str]


Position = tuple[UUID, int, int]
"""The order in which events are published: the run, the number of a stored event, and 0.

Tokens that follow the event have a growing number instead of the 0."""


async def relay(connection: AsyncConnection, group: Sequence[Relay]) -> Sequence[None]:
    """Store tokens for the subscribed processes: an operation of group commits."""
    rows = [
        {
            "watcher": subscriber,
            "run_id": one.event.run_id,
            "after_seq": one.after_seq,
            "number": one.number,
            "data": one.event.data,
            "at": one.event.at,
        }
        for one in group
        for subscriber in one.subscribers
    ]
    await insert_new(connection, RelayedTokens, rows)
    return [None] * len(group)


class TokenRelay:
    """The token subscriptions of this process, and those of others to its runs.

    Every method but `aclose` raises DatabaseUnavailable when the database can't be queried.
    """

    def __init__(self, database: Database, process: str) -> None:
        """`process` is the name of this process as the worker of its runs."""
        self._database = database
        self._process = process
        # The subscribed runs, and when each is to be renewed, by the loop's clock.
        self._subscribed: dict[UUID, float] = {}
        self._receiving_until = 0.0

    async def subscribe(self, run_ids: Set[UUID]) -> bool:
        """Subscribe to the tokens of these runs of other processes, and of no others.

        Returns whether there is a new subscription.
        """
        now = asyncio.get_running_loop().time()
        if run_ids:  # the process that executes a run notices late that a subscription has ended
            self._receiving_until = now + _SUBSCRIBED_SECONDS
        due = {run_id for run_id in run_ids if self._subscribed.get(run_id, 0.0) <= now}
        old = [*due, *(self._subscribed.keys() - run_ids)]
        if not old:
            return False
        until = self._database.clock.now() + timedelta(seconds=_SUBSCRIBED_SECONDS)
        async with self._database.write() as connection:
            for chunk in in_parts(old, MAX_IDS_PER_STATEMENT):
                mine = TokenSubscription.watcher == self._process
                await connection.execute(
                    delete(TokenSubscription).where(mine, TokenSubscription.run_id.in_(chunk))
                )
            await insert_new(
                connection,
                TokenSubscription,
                [{"run_id": id_, "watcher": self._process, "until": until} for id_ in due],
            )
        again, known = now + _RENEWED_SECONDS, self._subscribed.keys()
        is_new = not run_ids <= known
        self._subscribed = {id_: again if id_ in due else self._subscribed[id_] for id_ in run_ids}
        return is_new

    async def subscriptions(self) -> Mapping[UUID, Sequence[str]]:
        """The runs of this process that others subscribe to, with the names of those."""
        query = (
            select(TokenSubscription.run_id, TokenSubscription.watcher)
            .join(UserRun, UserRun.run_id == TokenSubscription.run_id)
            .where(
                UserRun.worker == self._process,
                UserRun.status == RunStatus.RUNNING,
                TokenSubscription.until > self._database.clock.now(),
            )
        )
        subscribers = defaultdict(list)
        async with self._database.read() as connection:
            for run_id, subscriber in await connection.execute(query):
                subscribers[run_id].append(subscriber)
        return subscribers

    async def receive(self) -> list[tuple[Position, Event]]:
        """Delete and return the tokens stored for this process.

        Queries the database only while there may be some.
        """
        if asyncio.get_running_loop().time() >= self._receiving_until:
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
                    Event(row.run_id, None, EventType.TASK_TOKENS, row.data, row.at),
                )
                for row in rows
            ]

    async def sweep(self) -> None:
        """Remove what processes that are gone have left behind."""
        now = self._database.clock.now()
        async with self._database.write() as connection:
            await connection.execute(delete(TokenSubscription).where(TokenSubscription.until < now))
            await connection.execute(
                delete(RelayedTokens).where(RelayedTokens.at < now - _LEFT_BEHIND)
            )

    async def aclose(self) -> None:
        """End all subscriptions, and delete the tokens stored for this process."""
        if not self._receiving_until:
            return
        try:
            await self.subscribe(set())
            await self.receive()
        except DatabaseUnavailable:
            logger.debug("The database is away: the next sweep removes token subscriptions")
