"""Polls the database for changes that other processes made."""

from datetime import timedelta
from operator import itemgetter
from typing import Final

from app.db import DatabaseClock
from app.runs.background import PeriodicService
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries

_INTERVAL_SECONDS: Final = 0.5
# Events count as new for this long: they are committed some time after they happened. Subscribers
# drop the events that they already have.
_LOOK_BACK: Final = timedelta(seconds=15)


class PeerPoller(PeriodicService):
    """Cancels this worker's runs that another process cancelled, and publishes events of runs
    that other workers execute to this process's subscribers. It relays tokens both ways.
    """

    name = "peer polling"
    is_essential = True

    def __init__(
        self,
        worker_name: str,
        clock: DatabaseClock,
        worker: Worker,
        events: EventHub,
        queries: RunQueries,
        tokens: TokenRelay,
    ) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._worker_name = worker_name
        self._clock = clock
        self._worker = worker
        self._events = events
        self._queries = queries
        self._tokens = tokens

    async def run_once(self) -> None:
        """Poll once. Raises DatabaseUnavailable."""
        since = self._clock.now() - _LOOK_BACK
        if len(self._worker):
            for run_id in await self._queries.cancelled(self._worker_name, since):
                self._worker.cancel(run_id)
            self._events.remote_subscribers = await self._tokens.subscriptions()
        executed_here = self._worker.run_ids
        await self._tokens.subscribe(self._events.subscribed_runs(tokens=True) - executed_here)
        happened = []
        if elsewhere := self._events.subscribed_runs() - executed_here:
            for event in await self._queries.events(elsewhere, since=since):
                happened.append(((event.run_id, event.seq or 0, 0), event))
        # Tokens are read last, so that the events that they follow have been read already.
        happened += await self._tokens.receive()
        for _, event in sorted(happened, key=itemgetter(0)):
            self._events.publish(event)

    async def aclose(self) -> None:
        await super().aclose()
        await self._tokens.aclose()
