"""Live messages that make other processes poll now: what they poll is in the database already.

So changes reach clients and workers elsewhere within milliseconds, and a message that is lost costs
half a second, until the next poll.
"""

import asyncio
from typing import Final
from uuid import UUID

from app.db import in_parts
from app.runs.events.hub import EventHub
from app.runs.execution.peer_poller import PeerPoller
from app.runs.execution.worker import Worker
from app.runs.persistence.repository import RunRepository
from app.runs.queue.base import RunQueue

CANCELLED_TOPIC: Final = "cancelled"
_EVENTS_TOPIC: Final = "events"
_SUBSCRIPTIONS_TOPIC: Final = "subscriptions"
_ID_BYTES: Final = 16
# Events of so long share a message.
_JOINED_SECONDS: Final = 0.01
_MAX_IDS_PER_MESSAGE: Final = 350


class LiveUpdates:
    """Sends this process's changes to others, and acts on theirs.

    A cancelled run is stopped by the process that executes it. Events and tokens of runs that have
    subscribers here are read. Subscriptions to tokens reach the process that executes the run.
    """

    def __init__(
        self,
        queue: RunQueue,
        rows: RunRepository,
        worker: Worker,
        events: EventHub,
        poller: PeerPoller,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._events = events
        self._poller = poller
        self._changed: set[UUID] = set()
        rows.on_event = self._note_event
        events.on_subscription = poller.poll_now
        poller.on_subscription = self._send_subscription

    async def start(self) -> None:
        """Subscribe to the changes of others. Raises QueueUnavailable."""
        await self._queue.subscribe(CANCELLED_TOPIC, self._cancel)
        await self._queue.subscribe(_EVENTS_TOPIC, self._receive_events)
        await self._queue.subscribe(_SUBSCRIPTIONS_TOPIC, self._receive_subscription)

    def _note_event(self, run_id: UUID) -> None:
        if not self._changed:
            asyncio.get_running_loop().call_later(_JOINED_SECONDS, self._send_events)
        self._changed.add(run_id)

    def _send_events(self) -> None:
        changed, self._changed = self._changed, set()
        for ids in in_parts(list(changed), _MAX_IDS_PER_MESSAGE):
            self._queue.send_soon(_EVENTS_TOPIC, b"".join(run_id.bytes for run_id in ids))

    def _send_subscription(self) -> None:
        self._queue.send_soon(_SUBSCRIPTIONS_TOPIC, b"")

    def _cancel(self, message: bytes) -> None:
        self._worker.cancel(UUID(bytes=message))

    def _receive_events(self, message: bytes) -> None:
        subscribed = self._events.subscribed_runs()
        if not subscribed:
            return
        parts = range(0, len(message), _ID_BYTES)
        changed = {UUID(bytes=message[start : start + _ID_BYTES]) for start in parts}
        if elsewhere := (changed & subscribed) - self._worker.run_ids:
            self._poller.poll_now(elsewhere)

    def _receive_subscription(self, _message: bytes) -> None:
        if len(self._worker):
            self._poller.poll_now()
