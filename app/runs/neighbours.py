"""What happens in other processes, found out by asking the database now and then."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from app.db import DatabaseUnavailable
from app.runs.events import EventHub
from app.runs.queries import RunQueries
from app.runs.worker import Worker

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS = 0.5
# Events count as new for this long: they are committed some time after they happened, and
# clocks of machines differ. Watchers leave out what they have seen.
_LOOK_BACK = timedelta(seconds=15)


class Neighbours:
    """Stops this worker's runs that were cancelled elsewhere, and tells this process's watchers
    of runs that other workers carry.
    """

    def __init__(
        self, worker_name: str, worker: Worker, events: EventHub, queries: RunQueries
    ) -> None:
        self._worker_name = worker_name
        self._worker = worker
        self._events = events
        self._queries = queries
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask now, and from then on twice a second."""
        self._listening = asyncio.create_task(self._listen_forever())

    async def aclose(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def _listen_forever(self) -> None:
        while True:
            try:
                await self._listen()
            except DatabaseUnavailable:
                logger.debug("The database is away: nothing is heard of other processes")
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _listen(self) -> None:
        since = datetime.now(UTC) - _LOOK_BACK
        if len(self._worker):
            for run_id in await self._queries.cancelled(self._worker_name, since):
                self._worker.abort(run_id)
        if elsewhere := self._events.watched() - self._worker.run_ids:
            for event in await self._queries.events(elsewhere, since=since):
                self._events.publish(event)
