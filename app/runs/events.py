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


class EventHub:
    """Tells the watchers in this process what happens in runs that it hears of."""

    def __init__(self) -> None:
        # Of each run the watchers' queues, and whether they want its tokens.
        self._watchers: dict[UUID, dict[asyncio.Queue[Event | None], bool]] = defaultdict(dict)
        self.watched_elsewhere: Mapping[UUID, Sequence[str]] = {}
        """The runs of this process whose words others watch, with the names of those."""

    def watched(self, *, tokens: bool = False) -> set[UUID]:
        """The runs that somebody in this process watches; with `tokens`, as their words come."""
        if not tokens:
            return set(self._watchers)
        return {run_id for run_id, queues in self._watchers.items() if any(queues.values())}

    def wants_tokens(self, run_id: UUID) -> bool:
        """Whether somebody watches the words of a run of this process as they come."""
        here = self._watchers.get(run_id)
        return (here is not None and any(here.values())) or run_id in self.watched_elsewhere

    def publish(self, event: Event) -> None:
        """Tell every watcher of the run; costs a look-up where there is none."""
        for queue, tokens in self._watchers.get(event.run_id, {}).items():
            if event.seq is None and not tokens:
                continue
            if queue.qsize() < _MAX_BEHIND:
                queue.put_nowait(event)
            elif queue.qsize() == _MAX_BEHIND:
                queue.put_nowait(None)  # the mark of being cut off

    def close(self) -> None:
        """End all watching: the process stops."""
        for queues in self._watchers.values():
            for queue in queues:
                queue.put_nowait(None)

    @contextmanager
    def watch(self, run_id: UUID, *, tokens: bool = True) -> Iterator[asyncio.Queue[Event | None]]:
        """A queue of what happens in the run while the block lasts; None: it is over."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._watchers[run_id][queue] = tokens
        try:
            yield queue
        finally:
            del self._watchers[run_id][queue]
            if not self._watchers[run_id]:
                del self._watchers[run_id]
