"""Keeps what this worker holds, and takes up runs that are in nobody's hands."""

import asyncio
import logging

from app.db import DatabaseUnavailable
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS = 5.0
# Enough to keep a worker busy until the next look.
_RUNS_PER_LOOK = 1000


class Recovery:
    """Renews this worker's leases and takes over runs whose lease has ended."""

    def __init__(
        self, rows: RunRepository, queries: RunQueries, worker: Worker, *, max_attempts: int
    ) -> None:
        self._rows = rows
        self._queries = queries
        self._worker = worker
        self._max_attempts = max_attempts
        self._looking: asyncio.Task[None] | None = None
        self.taking_over = True
        """Whether abandoned runs are taken up; a worker that stops only keeps what it holds."""

    def start(self) -> None:
        """Look now, and from then on at every interval."""
        self._looking = asyncio.create_task(self._look_forever())

    async def aclose(self) -> None:
        """Stop looking, and let go of what this worker still holds."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        try:
            await self._rows.release()
        except DatabaseUnavailable:
            logger.warning("The database is away: unfinished runs wait for their lease to end")

    async def look(self) -> None:
        """Renew the leases held and dispatch what nobody holds.

        Raises:
            DatabaseUnavailable: the database can't be asked.
        """
        await self._rows.renew_leases(self._worker.run_ids)
        if not self.taking_over:
            return
        for run in await self._queries.stalled(_RUNS_PER_LOOK):
            if run.failed_attempts >= self._max_attempts:
                await self._worker.give_up(run)
            elif run.run_id not in self._worker:
                logger.info(
                    "Taking over run %s after %d attempt(s)", run.run_id, run.failed_attempts
                )
                self._worker.dispatch(run.run_id, run.owner, run.crew)

    async def _look_forever(self) -> None:
        while True:
            try:
                await self.look()
            except DatabaseUnavailable:
                logger.warning("The database is away: leases could not be renewed")
            await asyncio.sleep(_INTERVAL_SECONDS)
