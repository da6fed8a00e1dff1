"""Polls the database for changes that other processes made."""

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
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
        begun, since = self._clock.now(), self._since
        if len(self._worker):
            for run_id in await self._queries.cancelled(self._worker_name, since):
                self._worker.cancel(run_id)
            self._events.remote_subscribers = await self._tokens.subscriptions()
        executed_here = self._worker.run_ids
        if await self._tokens.subscribe(self._events.subscribed_runs(tokens=True) - executed_here):
            self.on_subscription()
        await self._publish_events(self._events.subscribed_runs() - executed_here)
        self._polled_at = begun

    @property
    def _since(self) -> datetime:
        """The time from which changes may be new. Polling may have paused, with the process."""
        return min(self._polled_at, self._clock.now()) - _LOOK_BACK

    async def _publish_events(self, run_ids: Collection[UUID]) -> None:
        """Publish new events of these runs, and all tokens for this process."""
        happened = []
        if run_ids:
            for event in await self._queries.events(run_ids, since=self._since):
                happened.append(((event.run_id, event.seq or 0, 0), event))
        # Tokens are read last, so that the events that they follow have been read already.
        happened += await self._tokens.receive()
        for _, event in sorted(happened, key=itemgetter(0)):
            self._events.publish(event)

    async def aclose(self) -> None:
        await super().aclose()
        await self._tokens.aclose()
