"""Retention: settled runs are deleted with all their rows once they are old enough."""

import asyncio
import logging
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import select

from app.db import Database
from app.runs.background import PeriodicService
from app.runs.models import UserRun
from app.runs.persistence.statements import delete_runs
from app.runs.records import UNSETTLED

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS: Final = 3600.0
# Small transactions with pauses in between leave room for the writes of runs.
_RUNS_PER_TRANSACTION: Final = 100
_PAUSE_SECONDS: Final = 0.02


async def purge(database: Database, older_than: timedelta) -> int:
    """Delete the runs that were settled longer ago than `older_than`; returns how many.

    Several processes may purge at once. Raises DatabaseUnavailable; the runs deleted by then stay
    deleted.
    """
    before, removed = database.clock.now() - older_than, 0
    while count := await _purge_some(database, before):
        removed += count
        await asyncio.sleep(_PAUSE_SECONDS)
    return removed


class Retention(PeriodicService):
    """Purges once an hour."""

    name = "retention"

    def __init__(self, database: Database, *, days: float) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._database = database
        self._older_than = timedelta(days=days)

    async def run_once(self) -> None:
        """Purge once. Raises DatabaseUnavailable."""
        if removed := await purge(self._database, self._older_than):
            logger.info("Removed %d run(s) older than %s", removed, self._older_than)


async def _purge_some(database: Database, before: datetime) -> int:
    old = (
        select(UserRun.run_id)
        .where(
            # Implied by the next, and indexed: a run is created before it is settled.
            UserRun.created_at < before,
            UserRun.finished_at < before,
            UserRun.status.not_in(UNSETTLED),
        )
        .order_by(UserRun.created_at)
        .limit(_RUNS_PER_TRANSACTION)
        .with_for_update(skip_locked=True)  # other processes delete those
    )
    async with database.write() as connection:
        run_ids = list(await connection.scalars(old))
        await delete_runs(connection, run_ids)
    return len(run_ids)
