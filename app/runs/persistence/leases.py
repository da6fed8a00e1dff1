"""Leases: until when a worker holds the runs that it has claimed or is to claim."""

from collections.abc import Collection
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, select, update

from app.db import MAX_IDS_PER_STATEMENT, Database, in_parts
from app.runs.models import UserRun
from app.runs.records import IN_FLIGHT


class Leases:
    """The leases of one worker. Every method raises DatabaseUnavailable."""

    def __init__(self, database: Database, *, worker: str, duration: timedelta) -> None:
        self._database = database
        self._worker = worker
        self._duration = duration

    async def renew(self, run_ids: Collection[UUID]) -> None:
        """Renew the leases of those of these runs that this worker holds in the database."""
        for chunk in in_parts(list(run_ids), MAX_IDS_PER_STATEMENT):
            await self._set(self._database.clock.now() + self._duration, UserRun.run_id.in_(chunk))

    async def held(self) -> set[UUID]:
        """The runs in flight that this worker holds, also if their leases have ended."""
        query = select(UserRun.run_id).where(
            UserRun.worker == self._worker, UserRun.status.in_(IN_FLIGHT)
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    async def release(self) -> None:
        """End the leases of all runs in flight that this worker holds."""
        await self._set(None)

    async def expire(self) -> None:
        """End the leases of a worker that is lost.

        Unlike released leases, they show that its attempts did not end.
        """
        await self._set(self._database.clock.now())

    async def _set(self, until: datetime | None, *which: ColumnElement[bool]) -> None:
        # Locked in the same order as everywhere: no deadlock.
        held = (
            select(UserRun.run_id)
            .where(UserRun.worker == self._worker, UserRun.status.in_(IN_FLIGHT), *which)
            .order_by(UserRun.run_id)
            .with_for_update()
        )
        leases = update(UserRun).where(UserRun.run_id.in_(held)).values(lease_until=until)
        async with self._database.write() as connection:
            await connection.execute(leases)
