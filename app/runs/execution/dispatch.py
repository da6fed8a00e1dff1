"""Dispatch of accepted runs: to this process's worker, or by a queue to the workers of all."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from app.runs.background import PeriodicService
from app.runs.execution.consumer import QueueConsumer
from app.runs.execution.live_updates import CANCELLED_TOPIC
from app.runs.execution.worker import Worker
from app.runs.persistence.published_runs import PublishedRuns, StalledCounts
from app.runs.persistence.queries import RunQueries
from app.runs.queue.base import Hint, QueueUnavailable, RunQueue
from app.runs.records import DispatchedRun

logger = logging.getLogger("crew_capture.runs")

_INTERVAL_SECONDS: Final = 1.0
_BACKLOG_INTERVAL_SECONDS: Final = 0.1
# Submissions of so long share a pass.
_REST_SECONDS: Final = 0.02
# How many ids of a crew wait at the broker, at least and at most, as far as this process publishes
# them. A new owner's first run waits behind these.
_MIN_AHEAD: Final = 4
_MAX_AHEAD: Final = 64
# How many runs of lost workers are published at a time.
_MAX_BEGUN: Final = 1000
_NONE: Final = StalledCounts(0, 0)


class Dispatcher(Protocol):
    """Dispatches the runs that this process accepts."""

    is_shared: bool
    """Whether other processes may execute the runs."""

    @property
    def load(self) -> int:
        """How many dispatched runs wait or execute, as far as this process knows."""

    def reserve(self, crew: str, count: int) -> bool:
        """Whether so many new runs can be dispatched; if not, they join the backlog."""

    def dispatch(self, run: DispatchedRun) -> None:
        """Dispatch a run that is committed."""

    def cancel(self, run_id: UUID) -> None:
        """Make the process that executes a run, whose row is cancelled, stop it."""

    def join_backlog(self, count: int) -> None:
        """Dispatch so many committed runs, for which there was no room, later."""

    async def receive_no_more(self) -> None:
        """Leave the runs that others accept to other processes. Repeating the call is safe."""


class LocalDispatcher:
    """Dispatches all runs to this process's worker."""

    is_shared = False

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.dispatch = worker.dispatch

    @property
    def load(self) -> int:
        return len(self._worker)

    def reserve(self, crew: str, count: int) -> bool:
        return True

    def cancel(self, run_id: UUID) -> None:
        pass  # other processes poll

    def join_backlog(self, count: int) -> None:
        pass

    async def receive_no_more(self) -> None:
        pass


@dataclass(slots=True)
class _Window:
    """How many ids of a crew may wait at the broker, and how many of them may still be published.

    The window doubles while workers empty it, and shrinks to a few ids while all slots are used. So
    the broker holds a little more than there are free slots, and the backlog stays in the database,
    where owners have turns.
    """

    size: int = _MAX_AHEAD
    room: int = _MAX_AHEAD

    def adapt(self, waiting: int, backlog: int) -> None:
        """Set the size by the ids that wait at the broker now, and the room by the size."""
        is_needed = backlog > 0 or self.room <= self.size // 4
        if waiting <= self.size // 4:
            if is_needed:
                self.size = min(2 * self.size, _MAX_AHEAD)
            elif not waiting:
                self.size = _MAX_AHEAD
        elif waiting > self.size // 2:
            self.size = max(self.size // 2, _MIN_AHEAD)
        self.room = max(0, self.size - waiting)


class QueueDispatcher(PeriodicService):
    """Publishes runs a little ahead of free slots; turns rotate between owners, over all processes.

    A new run is published at once if there is room for it. Other stalled runs are published by
    passes over the database, those of lost workers among them. A pass begins when the next lease
    ends, or after a second. While the broker is away, new runs join the backlog.
    """

    name = "dispatch by the queue"
    is_shared = True

    def __init__(
        self, queue: RunQueue, runs: PublishedRuns, consumer: QueueConsumer | None
    ) -> None:
        """`consumer` receives runs for this process's worker; without it, only others do."""
        super().__init__(_INTERVAL_SECONDS)
        self.consumer: Final = consumer
        self._queue = queue
        self._runs = runs
        self._windows: dict[str, _Window] = {}
        self._backlog: Mapping[str, StalledCounts] = {}
        self._added = 0
        self._are_hints_lost = False
        queue.on_lost = self._republish

    @property
    def load(self) -> int:
        """The runs in the backlog of all processes, about, and those published since."""
        return sum(stalled.runs for stalled in self._backlog.values()) + self._added

    def reserve(self, crew: str, count: int) -> bool:
        window = self._windows.setdefault(crew, _Window())
        if not self._queue.is_connected or crew in self._backlog or window.room < count:
            return False
        window.room -= count
        if window.room < window.size // 2:
            self.wake()
        return True

    def dispatch(self, run: DispatchedRun) -> None:
        self._added += 1
        self._queue.publish_soon(Hint(run.run_id, run.crew))

    def cancel(self, run_id: UUID) -> None:
        self._queue.send_soon(CANCELLED_TOPIC, run_id.bytes)

    def join_backlog(self, count: int) -> None:
        self._added += count
        self.wake()

    def start(self) -> None:
        super().start()
        if self.consumer is not None:
            self.consumer.start()

    async def receive_no_more(self) -> None:
        if self.consumer is not None:
            await self.consumer.aclose()

    async def aclose(self) -> None:
        await self.receive_no_more()
        await super().aclose()

    async def run_once(self) -> None:
        """Publish what there is room for. Raises DatabaseUnavailable."""
        await asyncio.sleep(_REST_SECONDS)
        added = self._added
        self._backlog = await self._runs.backlog()
        self._added -= added
        if not self._queue.is_connected:
            return
        try:
            if self._are_hints_lost:
                self._are_hints_lost = False
                await self._runs.release()
                self._backlog = await self._runs.backlog()
            for crew in sorted({*self._backlog, *self._windows}):
                await self._publish(crew, self._backlog.get(crew, _NONE))
        except QueueUnavailable as error:
            logger.debug("%s; runs wait in the database", error)
            self._are_hints_lost = True
        seconds = await self._runs.seconds_to_next_stall(self.interval_seconds)
        if seconds is not None:
            pause = max(seconds, _BACKLOG_INTERVAL_SECONDS)
            asyncio.get_running_loop().call_later(pause, self.wake)

    async def _publish(self, crew: str, backlog: StalledCounts) -> None:
        window = self._windows.setdefault(crew, _Window())
        if not backlog.runs and window.room == window.size:
            return  # nothing was published since the last pass
        window.adapt(await self._queue.waiting(crew), backlog.runs)
        if not backlog.runs:
            return
        # Those of lost workers have waited for a lease: they need no room in the window.
        if count := max(window.room, min(backlog.begun, _MAX_BEGUN)):
            run_ids = await self._runs.hold(crew, count)
            await self._queue.publish([Hint(run_id, crew) for run_id in run_ids])
        # New runs are published by passes until the backlog is empty.
        window.room = 0
        asyncio.get_running_loop().call_later(_BACKLOG_INTERVAL_SECONDS, self.wake)

    def _republish(self) -> None:
        self._are_hints_lost = True
        self.wake()


class DatabaseDispatcher(PeriodicService):
    """Leaves accepted runs in the database, where the workers of other processes find them.

    The load is that of all processes, as counted once a second.
    """

    name = "count of runs in flight"
    is_shared = True

    def __init__(self, queries: RunQueries) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._queries = queries
        self._counted = 0
        self._added = 0

    @property
    def load(self) -> int:
        return self._counted + self._added

    def reserve(self, crew: str, count: int) -> bool:
        return False

    def dispatch(self, run: DispatchedRun) -> None:
        pass

    def cancel(self, run_id: UUID) -> None:
        pass  # other processes poll

    def join_backlog(self, count: int) -> None:
        self._added += count

    async def receive_no_more(self) -> None:
        pass

    async def run_once(self) -> None:
        """Count the runs in flight. Raises DatabaseUnavailable."""
        added = self._added
        self._counted = await self._queries.in_flight()
        self._added -= added
