"""Retention: settled runs are removed with all they have when they are old enough."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import select

from app.db import Database, DatabaseUnavailable
from app.runs.models import UserRun
from app.runs.persistence.statements import delete_runs
from app.runs.records import UNSETTLED

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS: Final = 3600.0
# Small transactions with pauses between them: runs that are being saved get their turn.
_RUNS_PER_TRANSACTION: Final = 100
_PAUSE_SECONDS: Final = 0.02


async def purge(database: Database, older_than: timedelta) -> int:
    """Remove runs that were settled longer ago than this; how many there were.

    May run in several processes at once. Raises DatabaseUnavailable; what was removed by then
    stays removed.
    """
    before, removed = datetime.now(UTC) - older_than, 0
    while count := await _purge_some(database, before):
        removed += count
        await asyncio.sleep(_PAUSE_SECONDS)
    return removed


class Retention:
    """Purges once an hour."""

    def __init__(self, database: Database, *, days: float) -> None:
        self._database = database
        self._older_than = timedelta(days=days)
        self._purging: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Purge now, and from then on in the background."""
        self._purging = asyncio.create_task(self._purge_forever())

    async def aclose(self) -> None:
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.gather(self._purging, return_exceptions=True)

    async def _purge_forever(self) -> None:
        while True:
            try:
                if removed := await purge(self._database, self._older_than):
                    logger.info("Removed %d run(s) older than %s", removed, self._older_than)
            except DatabaseUnavailable:
                logger.warning("The database is away: old runs are kept until the next hour")
            except Exception:  # the next hour may do better
                logger.exception("Old runs could not be removed")
            await asyncio.sleep(_INTERVAL_SECONDS)


async def _purge_some(database: Database, before: datetime) -> int:
    old = (
        select(UserRun.run_id)
        .where(
            # No run is settled before it is created, and by that there is an index.
            UserRun.created_at < before,
            UserRun.finished_at < before,
            UserRun.status.not_in(UNSETTLED),
        )
        .order_by(UserRun.created_at)
        .limit(_RUNS_PER_TRANSACTION)
        .with_for_update(skip_locked=True)  # another process's are removed by that one
    )
    async with database.write() as connection:
        run_ids = list(await connection.scalars(old))
        await delete_runs(connection, run_ids)
    return len(run_ids)
