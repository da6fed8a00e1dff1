"""Takes up runs that are in nobody's hands: their worker stopped, or never came to them."""

import asyncio
import logging

from app.db import DatabaseUnavailable
from app.runs.rows import RunRows
from app.runs.service import RunService

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS = 5.0
# Enough to keep a worker busy until the next look.
_RUNS_PER_LOOK = 1000


class Recovery:
    """Renews this worker's leases and takes over runs whose lease has ended."""

    def __init__(
        self,
        rows: RunRows,
        service: RunService,
        *,
        max_attempts: int,
    ) -> None:
        self._rows = rows
        self._service = service
        self._max_attempts = max_attempts
        self._looking: asyncio.Task[None] | None = None

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
        await self._rows.renew_leases()
        if not self._service.accepting:
            return
        for run_id, attempts in await self._rows.abandoned(_RUNS_PER_LOOK):
            if attempts >= self._max_attempts:
                await self._service.give_up(run_id, attempts)
            else:
                logger.info("Taking over run %s after %d attempt(s)", run_id, attempts)
                self._service.dispatch(run_id)

    async def _look_forever(self) -> None:
        while True:
            try:
                await self.look()
            except DatabaseUnavailable:
                logger.warning("The database is away: leases could not be renewed")
            await asyncio.sleep(_INTERVAL_SECONDS)
