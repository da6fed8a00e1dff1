"""Sweeps: what runs left behind in the store, removed by age."""

import asyncio
import contextlib
import time

from app.db import DatabaseUnavailable
from app.runs.events.token_relay import TokenRelay
from app.runs.persistence.queries import RunQueries
from storage import OutputStore, SweepReport

# A sweep in the background is followed by a rest of so many times its length.
_RESTS = 20


class Sweeper:
    """Removes orphans older than the age limit: at start, on a timer, and when asked to.

    Outputs of unsettled runs are kept; if the database can't be asked, nothing is removed.
    """

    def __init__(
        self,
        store: OutputStore,
        queries: RunQueries,
        tokens: TokenRelay,
        *,
        max_age_seconds: float,
        interval_seconds: float,
        probability: float,
    ) -> None:
        self._store = store
        self._queries = queries
        self._tokens = tokens
        self._max_age_seconds = max_age_seconds
        self._interval_seconds = interval_seconds
        self._wanted = asyncio.Event()
        self._sweeping: asyncio.Task[None] | None = None
        self.probability = probability
        """The share of runs after which a sweep is asked for."""

    def start(self) -> None:
        """Sweep now, and from then on in the background."""
        self._wanted.set()
        self._sweeping = asyncio.create_task(self._sweep_forever())

    def sweep_soon(self) -> None:
        """Ask for a sweep in the background; those asked for during one and its rest are one."""
        self._wanted.set()

    async def sweep(self) -> SweepReport:
        """Sweep once, now; what hinders it is logged and in the report."""
        with contextlib.suppress(DatabaseUnavailable):
            await self._tokens.sweep()
        return await self._store.sweep(self._max_age_seconds, find_needed=self._queries.unsettled)

    async def aclose(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)

    async def _sweep_forever(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), self._interval_seconds)
            self._wanted.clear()
            begun = time.monotonic()
            await self.sweep()
            # Under load a sweep is asked for all the time, and looks at thousands of outputs.
            await asyncio.sleep((time.monotonic() - begun) * _RESTS)
