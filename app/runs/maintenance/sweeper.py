"""Sweeps: removal of orphans, the outputs that runs left behind in the store, by age."""

import contextlib

from app.db import DatabaseUnavailable
from app.runs.background import PeriodicService
from app.runs.events.token_relay import TokenRelay
from app.runs.persistence.queries import RunQueries
from storage import OutputStore, SweepReport


class Sweeper(PeriodicService):
    """Removes orphans older than the age limit: at start, at an interval, and when woken.

    Outputs of unsettled runs are kept. While the database is unavailable, nothing is removed.
    """

    name = "sweep"
    # Under load the sweeper is woken all the time, and each sweep examines thousands of outputs.
    rest_factor = 20.0

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
        super().__init__(interval_seconds)
        self._store = store
        self._queries = queries
        self._tokens = tokens
        self._max_age_seconds = max_age_seconds
        self.probability = probability
        """The share of runs after which the worker wakes the sweeper."""

    async def run_once(self) -> None:
        """Sweep once."""
        await self.sweep()

    async def sweep(self) -> SweepReport:
        """Sweep once; obstacles are logged and in the report."""
        with contextlib.suppress(DatabaseUnavailable):
            await self._tokens.sweep()
        return await self._store.sweep(self._max_age_seconds, find_needed=self._queries.unsettled)
