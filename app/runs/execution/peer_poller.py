"""Polls the database for changes that other processes made."""

from collections.abc import Callable, Collection
from datetime import timedelta
from operator import itemgetter
from time import monotonic
from typing import Final
from uuid import UUID

from app.db import DatabaseClock
from app.runs.background import PeriodicService
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries

_INTERVAL_SECONDS: Final = 0.5
# Cancellations count as new for this long: they are committed some time after they happened.
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
        self._changed: set[UUID] = set()
        self._is_due = True
        self._due_at = 0.0
        self._polled_at = clock.now()
        self.on_subscription: Callable[[], None] = lambda: None
        """Is called when this process has subscribed to tokens of other processes."""

    def poll_now(self, run_ids: Collection[UUID] = ()) -> None:
        """Poll early: for new events of these runs alone, if there are any."""
        if run_ids:
            self._changed.update(run_ids)
        else:
            self._is_due = True
        self.wake()

    async def run_once(self) -> None:
        """Poll once. Raises DatabaseUnavailable."""
        changed, self._changed = self._changed, set()
        if changed and not self._is_due and monotonic() < self._due_at:
            await self._publish_events(changed)
            return
        self._is_due = False
        self._due_at = monotonic() + _INTERVAL_SECONDS
        begun = self._clock.now()
        if len(self._worker):
            # Polling may have paused, with the process.
            since = min(self._polled_at, begun) - _LOOK_BACK
            for run_id in await self._queries.cancelled(self._worker_name, since):
                self._worker.cancel(run_id)
            self._events.remote_subscribers = await self._tokens.subscriptions()
        executed_here = self._worker.run_ids
        if await self._tokens.subscribe(self._events.subscribed_runs(tokens=True) - executed_here):
            self.on_subscription()
        await self._publish_events(self._events.subscribed_runs() - executed_here)
        self._polled_at = begun

    async def _publish_events(self, run_ids: Collection[UUID]) -> None:
        """Publish new events of these runs, and all tokens for this process.

        Events are new by their numbers. Their times do not count: a worker that can't reach the
        database commits them much later than they happened.
        """
        happened = []
        if last := self._events.last_published(run_ids):
            for event in await self._queries.events_after(last):
                happened.append(((event.run_id, event.seq or 0, 0), event))
        # Tokens are read last, so that the events that they follow have been read already.
        happened += await self._tokens.receive()
        for _, event in sorted(happened, key=itemgetter(0)):
            self._events.publish(event)

    async def aclose(self) -> None:
        await super().aclose()
        await self._tokens.aclose()
