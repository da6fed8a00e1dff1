"""Claims queued runs that no process has in hand, by polling the database."""

from typing import Final

from app.runs.background import PeriodicService
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries
from app.runs.records import DispatchedRun

_INTERVAL_SECONDS: Final = 0.5
_RUNS_PER_PASS: Final = 1000


class QueuePoller(PeriodicService):
    """Dispatches as many queued runs to this worker as it has free slots.

    Of several workers that dispatch the same run, one claims it, and the others drop it.
    """

    name = "polling of queued runs"
    rest_factor = 3.0

    def __init__(self, queries: RunQueries, worker: Worker) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._queries = queries
        self._worker = worker

    async def run_once(self) -> None:
        """Query and dispatch. Raises DatabaseUnavailable."""
        # Runs that wait here for their owner's turn hold no slot, and hide no other owner's runs.
        free = min(self._worker.slots.free, _RUNS_PER_PASS)
        if not free:
            return
        for run in await self._queries.stalled(self._worker.crews, free, failed_below=1):
            if run.run_id not in self._worker:
                self._worker.dispatch(DispatchedRun.of(run))
