"""What happens in other processes, found out by asking the database now and then."""

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from operator import itemgetter

from app.db import DatabaseUnavailable
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS = 0.5
# Events count as new for this long: they are committed some time after they happened, and
# clocks of machines differ. Watchers leave out what they have seen.
_LOOK_BACK = timedelta(seconds=15)


class PeerPoller:
    """Stops this worker's runs that were cancelled elsewhere, and tells this process's watchers
    of runs that other workers carry, and has the words of those passed between the two.
    """

    def __init__(
        self,
        worker_name: str,
        worker: Worker,
        events: EventHub,
        queries: RunQueries,
        tokens: TokenRelay,
    ) -> None:
        self._worker_name = worker_name
        self._worker = worker
        self._events = events
        self._queries = queries
        self._tokens = tokens
        self._listening: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Ask now, and from then on twice a second."""
        self._listening = asyncio.create_task(self._listen_forever())

    async def aclose(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        await self._tokens.aclose()

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
                self._worker.cancel(run_id)
            self._events.remote_subscribers = await self._tokens.subscriptions()
        carried = self._worker.run_ids
        await self._tokens.subscribe(self._events.subscribed_runs(tokens=True) - carried)
        happened = []
        if elsewhere := self._events.subscribed_runs() - carried:
            for event in await self._queries.events(elsewhere, since=since):
                happened.append(((event.run_id, event.seq or 0, 0), event))
        # Asked for last: no event comes before the words that it follows.
        happened += await self._tokens.receive()
        for _, event in sorted(happened, key=itemgetter(0)):
            self._events.publish(event)
