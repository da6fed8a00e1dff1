"""Publish and subscribe for the events of runs, within one process."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from uuid import UUID

from app.runs.events.event import Event
from app.runs.events.streamed_texts import StreamedTexts

# A subscriber that falls behind by so many events is cut off. It can subscribe again after the last
# event that it received.
_MAX_BEHIND = 1000
_MANY = 10


class Subscriber:
    """The queue of events between the hub and one client."""

    def __init__(self, *, tokens: bool, after_seq: int, heartbeat_seconds: float) -> None:
        self.needs_tokens = tokens
        self._last_seq = after_seq
        self._heartbeat_seconds = heartbeat_seconds
        self._queue: list[Event] = []
        self._ended = False
        self._changed = asyncio.Event()
        self._heartbeat = self._schedule_heartbeat()

    @property
    def last_seq(self) -> int | None:
        """The number of the last event that was queued; None if no more is to be queued."""
        return None if self._ended else self._last_seq

    @property
    def is_over(self) -> bool:
        """Whether all events have been received and no more will follow."""
        return self._ended and not self._queue

    def prepend(self, history: Sequence[Event], texts: Mapping[int, Event] | None = None) -> None:
        """Queue stored events before those published since; each event is queued once.

        `texts` are the texts so far of tasks by index, which include the tokens published since.
        """
        if not history and not texts:
            return
        if self._queue and self._queue[-1].settles:
            self._ended = False  # by an attempt before a retry, if the history continues
        texts = texts or {}
        last = (history[-1].seq or 0) if history else -1
        news = [
            event
            for event in self._queue
            if (event.data["index"] not in texts if event.seq is None else event.seq > last)
        ]
        self._queue = [*history, *texts.values(), *news]
        self._last_seq = max(self._last_seq, last)
        # `publish` drops stored events that are known, so the end of the run may be among these.
        stored = [event for event in self._queue if event.seq is not None]
        self._ended |= bool(stored) and stored[-1].settles
        self._changed.set()

    def publish(self, event: Event) -> None:
        """Queue an event unless it was queued before; cut off a subscriber that is far behind."""
        if self._ended:
            return
        if event.seq is not None:
            if event.seq <= self._last_seq:
                return
            self._last_seq = event.seq
        elif not self.needs_tokens:
            return
        self._queue.append(event)
        self._ended = event.settles or len(self._queue) >= _MAX_BEHIND
        self._changed.set()

    def end(self) -> None:
        """Queue no more events."""
        self._ended = True
        self._changed.set()

    async def receive(self) -> list[Event]:
        """Wait for events and return all that are queued; an empty list is a heartbeat."""
        await self._changed.wait()
        self._changed.clear()
        events, self._queue = self._queue, []
        return events

    def close(self) -> None:
        """Stop the heartbeat."""
        self._heartbeat.cancel()

    def _schedule_heartbeat(self) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(self._heartbeat_seconds, self._beat)

    def _beat(self) -> None:
        self._changed.set()
        self._heartbeat = self._schedule_heartbeat()


class EventHub:
    """Publishes the events of runs to the subscribers in this process."""

    def __init__(self) -> None:
        self._subscribers: dict[UUID, set[Subscriber]] = defaultdict(set)
        self._streamed = StreamedTexts()
        self.subscriber_count = 0
        self.remote_subscribers: Mapping[UUID, Sequence[str]] = {}
        """For runs of this process: the names of other processes that subscribe to the tokens."""
        self.on_subscription: Callable[[], None] = lambda: None
        """Is called for each new subscriber to tokens."""

    def subscribed_runs(self, *, tokens: bool = False) -> set[UUID]:
        """The runs with subscribers in this process; with `tokens`, with subscribers to tokens."""
        if not tokens:
            return set(self._subscribers)
        return {run_id for run_id in self._subscribers if self._needs_tokens_here(run_id)}

    def last_published(self, run_ids: Collection[UUID]) -> Mapping[UUID, int]:
        """The number after which events of each of these runs are new to a subscriber here."""
        last = {}
        for run_id in run_ids:
            numbers = [one.last_seq for one in self._subscribers.get(run_id, ())]
            if open_at := [number for number in numbers if number is not None]:
                last[run_id] = min(open_at)
        return last

    def needs_tokens(self, run_id: UUID) -> bool:
        """Whether a run of this process has subscribers to tokens, in any process."""
        return self._needs_tokens_here(run_id) or run_id in self.remote_subscribers

    def has_many_subscribers(self, run_id: UUID) -> bool:
        """Whether one event of the run makes so many tasks ready that they need turns."""
        return len(self._subscribers.get(run_id, ())) > _MANY

    def publish(self, event: Event) -> None:
        """Publish an event to every subscriber of its run; costs two look-ups without any."""
        self._streamed.note(event)
        for subscriber in self._subscribers.get(event.run_id, ()):
            subscriber.publish(event)

    def streamed_texts(self, run_id: UUID) -> Mapping[int, Event]:
        """The texts so far of the run's tasks under way, by the tasks' indexes."""
        return self._streamed.of(run_id)

    def close(self) -> None:
        """End all subscriptions: the process stops."""
        for subscribers in self._subscribers.values():
            for subscriber in subscribers:
                subscriber.end()

    @contextmanager
    def subscribe(
        self, run_id: UUID, *, tokens: bool, after_seq: int, heartbeat_seconds: float
    ) -> Iterator[Subscriber]:
        """A subscriber to the run's events above a number, for the length of the block."""
        subscriber = Subscriber(
            tokens=tokens, after_seq=after_seq, heartbeat_seconds=heartbeat_seconds
        )
        self._subscribers[run_id].add(subscriber)
        self.subscriber_count += 1
        if tokens:
            self.on_subscription()
        try:
            yield subscriber
        finally:
            self.subscriber_count -= 1
            subscriber.close()
            self._subscribers[run_id].discard(subscriber)
            if not self._subscribers[run_id]:
                del self._subscribers[run_id]

    def _needs_tokens_here(self, run_id: UUID) -> bool:
        return any(one.needs_tokens for one in self._subscribers.get(run_id, ()))
