"""Runs that are published to a queue: the database's side of it."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import and_, case, func, select, update

from app.db import Database
from app.runs.models import UserRun
from app.runs.persistence.leases import Leases
from app.runs.persistence.queries import (
    failed_attempts,
    is_stalled,
    seconds_to_next_stall,
    stalled_runs,
)
from app.runs.records import QUEUE, QUEUE_AFTER_LOSS, QUEUES, RunStatus

_is_lost: Final = and_(UserRun.status == RunStatus.RUNNING, UserRun.lease_until.is_not(None))
# An id may be published again and again: the first time decides.
_HOLDER: Final = case(
    (UserRun.worker.in_(QUEUES), UserRun.worker), (_is_lost, QUEUE_AFTER_LOSS), else_=QUEUE
)


class StalledCounts(NamedTuple):
    """The number of stalled runs of a crew, and of those among them that had begun."""

    runs: int
    begun: int


class PublishedRuns:
    """Holds stalled runs for the queue while their ids are published.

    A run is stalled if no process and no broker has it in hand: it waits in the backlog, or its
    worker was lost. If a broker loses an id, the run is stalled again when the hold ends. Runs with
    `max_failed_attempts` or more are left out: they are isolated.

    Every method raises DatabaseUnavailable.
    """

    def __init__(
        self, database: Database, *, lease_seconds: float, max_failed_attempts: int
    ) -> None:
        self._database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._leases = [Leases(database, worker=one, duration=self._lease) for one in QUEUES]
        self._is_trusted = failed_attempts < max_failed_attempts

    async def backlog(self) -> Mapping[str, "StalledCounts"]:
        """The numbers of stalled runs by crew."""
        query = (
            select(UserRun.crew, func.count(), func.count().filter(UserRun.attempt > 0))
            .where(*is_stalled(self._database.clock.now()), self._is_trusted)
            .group_by(UserRun.crew)
        )
        async with self._database.read() as connection:
            return {
                crew: StalledCounts(int(runs), int(begun))
                for crew, runs, begun in await connection.execute(query)
            }

    async def hold(self, crew: str, count: int) -> Sequence[UUID]:
        """Hold the next stalled runs of a crew, owners in turn; returns their ids in that order.

        No other process gets the same runs.
        """
        async with self._database.write() as connection:
            now = self._database.clock.now()
            candidates = stalled_runs(
                [UserRun.run_id], now, UserRun.crew == crew, self._is_trusted, limit=count
            )
            run_ids = list(await connection.scalars(candidates))
            locked = (
                select(UserRun.run_id)
                .where(UserRun.run_id.in_(run_ids), *is_stalled(now))
                .order_by(UserRun.run_id)
                .with_for_update(skip_locked=True)
            )
            held = set(await connection.scalars(locked))
            await connection.execute(
                update(UserRun)
                .where(UserRun.run_id.in_(held))
                .values(worker=_HOLDER, lease_until=now + self._lease)
            )
        return [run_id for run_id in run_ids if run_id in held]

    async def seconds_to_next_stall(self, at_most: float) -> float | None:
        """The seconds until the next lease of a run in flight ends; None if all are longer."""
        return await seconds_to_next_stall(self._database, at_most)

    async def release(self) -> None:
        """End all holds: the broker may have lost the ids."""
        for leases in self._leases:
            await leases.release()
