"""Receives the ids of runs from a queue, as many as this process has free slots for."""

import asyncio
import logging
from functools import partial
from typing import Final

from app.runs.execution.worker import Worker
from app.runs.queue.base import QueueUnavailable, RunQueue

logger = logging.getLogger("crew_capture.runs")

# Hints that a broker has sent wait here while no slot is free.
_MAX_BATCH: Final = 32
_WAIT_SECONDS: Final = 5.0
_FIRST_BACKOFF_SECONDS: Final = 0.1
_MAX_BACKOFF_SECONDS: Final = 2.0


class QueueConsumer:
    """Dispatches deliveries to this process's worker, for each of its crews.

    A delivery is in hand until its run is claimed. Then the run's row keeps other workers away, and
    the delivery is acknowledged.
    """

    def __init__(self, queue: RunQueue, worker: Worker) -> None:
        self._queue = queue
        self._worker = worker
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to receive."""
        for crew in sorted(self._worker.crews):
            name = f"queue consumer of {crew}"
            self._tasks.append(asyncio.create_task(self._consume(crew), name=name))

    async def aclose(self) -> None:
        """Receive no more. Closing it again is safe."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _consume(self, crew: str) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            count = await self._worker.free_slots(crew)
            try:
                await self._receive(crew, min(count, _MAX_BATCH))
            except QueueUnavailable:
                await asyncio.sleep(backoff)
                backoff = min(2 * backoff, _MAX_BACKOFF_SECONDS)
            except Exception:
                logger.exception("The queue's deliveries for crew %s failed", crew)
                await asyncio.sleep(_MAX_BACKOFF_SECONDS)
            else:
                backoff = _FIRST_BACKOFF_SECONDS

    async def _receive(self, crew: str, count: int) -> None:
        deliveries = await self._queue.receive(crew, count, _WAIT_SECONDS)
        surplus = []
        for delivery in deliveries:
            if self._worker.has_free_slot(crew):
                acknowledge = partial(self._queue.acknowledge, delivery)
                self._worker.dispatch_delivery(delivery.hint.run_id, crew, acknowledge)
            else:  # other crews have got the slots meanwhile
                surplus.append(delivery)
        await self._queue.give_back(surplus)
