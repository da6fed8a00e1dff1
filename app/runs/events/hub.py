"""What happens in a run: stored events, and model tokens as they come, told to watchers."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

# Each attempt at a run numbers its events from here on, so that no two attempts share a number.
EVENTS_PER_ATTEMPT: Final = 100_000

# A watcher that falls behind by this many events is cut off; it comes back with the last it saw.
_MAX_BEHIND = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run; `seq` is None for what is told but not stored."""

    run_id: UUID
    seq: int | None
    type: str
    data: dict[str, Any]
    at: datetime

    @property
    def settles(self) -> bool:
        """Whether this is the last event of the run."""
        return self.type in ("run.succeeded", "run.failed", "run.cancelled")


class Subscriber:
    """What one watcher of a run is to be told, gathered until it takes it."""

    def __init__(self, *, tokens: bool, after_seq: int, heartbeat_seconds: float) -> None:
        self.wants_tokens = tokens
        self._last_seq = after_seq
        self._heartbeat_seconds = heartbeat_seconds
        self._untold: list[Event] = []
        self._ended = False
        self._something = asyncio.Event()
        self._beating = self._beat_later()

    @property
    def is_over(self) -> bool:
        """Whether everything is taken that will ever be told."""
        return self._ended and not self._untold

    def begin(self, history: Sequence[Event]) -> None:
        """Put what is stored before what was told since; what is in both is told once."""
        if history:
            last = history[-1].seq or 0
            news = [event for event in self._untold if event.seq is None or event.seq > last]
            self._untold = [*history, *news]
            self._last_seq = max(self._last_seq, last)
            self._something.set()

    def tell(self, event: Event) -> None:
        """Tell what happened, unless it was told; a watcher that is far behind is cut off."""
        if self._ended:
            return
        if event.seq is not None:
            if event.seq <= self._last_seq:
                return
            self._last_seq = event.seq
        elif not self.wants_tokens:
            return
        self._untold.append(event)
        self._ended = event.settles or len(self._untold) >= _MAX_BEHIND
        self._something.set()

    def end(self) -> None:
        """Tell nothing more."""
        self._ended = True
        self._something.set()

    async def take(self) -> list[Event]:
        """Wait for what happens, and take it all; nothing is a heartbeat."""
        await self._something.wait()
        self._something.clear()
        events, self._untold = self._untold, []
        return events

    def close(self) -> None:
        self._beating.cancel()

    def _beat_later(self) -> asyncio.TimerHandle:
        loop = asyncio.get_running_loop()
        return loop.call_later(self._heartbeat_seconds, self._beat)

    def _beat(self) -> None:
        self._something.set()
        self._beating = self._beat_later()


class EventHub:
    """Tells the watchers in this process what happens in runs that it hears of."""

    def __init__(self) -> None:
        self._watchers: dict[UUID, set[Subscriber]] = defaultdict(set)
        self.watched_elsewhere: Mapping[UUID, Sequence[str]] = {}
        """The runs of this process whose words others watch, with the names of those."""

    def watched(self, *, tokens: bool = False) -> set[UUID]:
        """The runs that somebody in this process watches; with `tokens`, as their words come."""
        if not tokens:
            return set(self._watchers)
        return {run_id for run_id in self._watchers if self._wants_tokens_here(run_id)}

    def wants_tokens(self, run_id: UUID) -> bool:
        """Whether somebody watches the words of a run of this process as they come."""
        return self._wants_tokens_here(run_id) or run_id in self.watched_elsewhere

    def publish(self, event: Event) -> None:
        """Tell every watcher of the run; costs a look-up where there is none."""
        for watcher in self._watchers.get(event.run_id, ()):
            watcher.tell(event)

    def close(self) -> None:
        """End all watching: the process stops."""
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.end()

    @contextmanager
    def watch(
        self, run_id: UUID, *, tokens: bool, after_seq: int, heartbeat_seconds: float
    ) -> Iterator[Subscriber]:
        """A watcher of what happens in the run above a number, while the block lasts."""
        watcher = Subscriber(
            tokens=tokens, after_seq=after_seq, heartbeat_seconds=heartbeat_seconds
        )
        self._watchers[run_id].add(watcher)
        try:
            yield watcher
        finally:
            watcher.close()
            self._watchers[run_id].discard(watcher)
            if not self._watchers[run_id]:
                del self._watchers[run_id]

    def _wants_tokens_here(self, run_id: UUID) -> bool:
        return any(watcher.wants_tokens for watcher in self._watchers.get(run_id, ()))
