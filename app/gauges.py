"""Gauges: numbers that are read from time to time, unlike events, which are counted as they happen.

Each process publishes its own. The database and the output store, which all processes share, are
queried when metrics are scraped.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final

from prometheus_client import ProcessCollector

from app.db import DatabaseUnavailable
from app.runs.background import PeriodicService
from app.runs.events.hub import EventHub
from app.runs.execution.worker import Worker
from app.runs.persistence.queries import RunQueries
from app.runs.queue.base import RunQueue
from app.runs.records import UNSETTLED
from app.telemetry import metrics
from storage import OutputStore, StorageError

logger = logging.getLogger("crew_capture.metrics")

_INTERVAL_SECONDS: Final = 1.0
# Listing file descriptors or stored outputs costs more than the rest.
_PASSES_PER_SLOW_ONE: Final = 5
_LAG_INTERVAL_SECONDS: Final = 0.5

_PROCESS_GAUGES: Final = (
    metrics.PROCESS_MEMORY,
    metrics.PROCESS_FILES,
    metrics.PROCESS_MAX_FILES,
    metrics.PROCESS_START,
)


class ProcessGauges(PeriodicService):
    """Publishes the numbers of this process once a second, and samples the event loop's lag.

    The output store counts its calls itself; what it has counted since the last pass is added.
    """

    name = "metrics"

    def __init__(
        self,
        worker: Worker,
        events: EventHub,
        store: OutputStore,
        queue: RunQueue | None = None,
    ) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._worker = worker
        self._events = events
        self._store = store
        self._queue = queue
        self._counted = replace(store.counters, sweeps={})
        self._cpu_seconds = 0.0
        self._process = ProcessCollector(registry=None)
        self._passes = 0
        self._sample: asyncio.TimerHandle | None = None

    def start(self) -> None:
        super().start()
        metrics.PROCESSES.set(1)
        self._sample_lag_later()

    async def run_once(self) -> None:
        """Publish all numbers."""
        metrics.RUN_SLOTS.set(self._worker.slots.count)
        metrics.RUN_SLOTS_USED.set(self._worker.slots.used)
        metrics.RUN_LEASES.set(len(self._worker))
        metrics.SUBSCRIBERS.set(self._events.subscriber_count)
        metrics.ABANDONED_THREADS.set(self._worker.abandoned_threads)
        if self._queue is not None:
            metrics.QUEUE_DISCONNECTED.set(not self._queue.is_connected)
        self._publish_counters()
        if self._passes % _PASSES_PER_SLOW_ONE == 0:
            self._publish_process()
            if "memory" in self._store.backends:
                await _publish_usage(self._store, "memory")
        self._passes += 1

    async def aclose(self) -> None:
        await super().aclose()
        if self._sample is not None:
            self._sample.cancel()
        self._publish_counters()

    def _publish_counters(self) -> None:
        cpu_seconds = time.process_time()
        metrics.PROCESS_CPU.inc(by=cpu_seconds - self._cpu_seconds)
        self._cpu_seconds = cpu_seconds
        now, before = self._store.counters, self._counted
        for counter, labels, name in _STORE_COUNTERS:
            if more := getattr(now, name) - getattr(before, name):
                counter.inc(*labels, by=more)
        for outcome, count in now.sweeps.items():
            if more := count - before.sweeps.get(outcome, 0):
                metrics.SWEEPS.inc(outcome.name.lower(), by=more)
                metrics.LAST_SWEEP.set(time.time(), outcome.name.lower())
        self._counted = replace(now, sweeps=dict(now.sweeps))

    def _publish_process(self) -> None:
        found = {family.name: family.samples[0].value for family in self._process.collect()}
        for gauge in _PROCESS_GAUGES:
            gauge.set(found.get(gauge.name))

    def _sample_lag_later(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + _LAG_INTERVAL_SECONDS
        self._sample = loop.call_at(due, self._sample_lag, due)

    def _sample_lag(self, due: float) -> None:
        metrics.EVENT_LOOP_LAG.observe(asyncio.get_running_loop().time() - due)
        self._sample_lag_later()


_STORE_COUNTERS: Final = (
    (metrics.STORAGE_OPERATIONS, ("persist", "ok"), "outputs_persisted"),
    (metrics.STORAGE_OPERATIONS, ("persist", "failed"), "persists_failed"),
    (metrics.STORAGE_OPERATIONS, ("read", "ok"), "outputs_read"),
    (metrics.STORAGE_OPERATIONS, ("read", "failed"), "reads_failed"),
    (metrics.STORAGE_OPERATIONS, ("delete", "ok"), "outputs_deleted"),
    (metrics.STORAGE_OPERATIONS, ("delete", "failed"), "deletes_failed"),
    (metrics.PERSISTED_BYTES, (), "bytes_persisted"),
    (metrics.READ_RETRIES, (), "reads_retried"),
    (metrics.CLEANUP_FAILURES, (), "cleanup_failures"),
    (metrics.SWEPT_OUTPUTS, (), "outputs_swept"),
    (metrics.SWEPT_BYTES, (), "bytes_swept"),
)


@dataclass
class _Fact:
    """A query whose result is published, and kept for a while. One is under way at a time."""

    publish: Callable[[], Awaitable[None]]
    keep_seconds: float
    task: asyncio.Task[None] | None = None
    ended_at: float = field(default=-math.inf)

    def begin(self) -> asyncio.Task[None]:
        """The query under way or, if its result is still kept, the last one."""
        is_due = time.monotonic() - self.ended_at >= self.keep_seconds
        if self.task is None or (self.task.done() and is_due):
            self.task = asyncio.create_task(self._run())
        return self.task

    async def _run(self) -> None:
        try:
            await self.publish()
        except Exception:
            logger.exception("A number for metrics could not be read")
        finally:
            self.ended_at = time.monotonic()


class SharedGauges:
    """Publishes what all processes share, whenever metrics are scraped.

    Results are kept for a second, those of backends for longer. A query that lasts longer than
    `wait_seconds` leaves the last numbers of a backend, and of the database none.
    """

    def __init__(
        self, queries: RunQueries, store: OutputStore, *, wait_seconds: float = 3.0
    ) -> None:
        self._queries = queries
        self._wait_seconds = wait_seconds
        self._database = _Fact(self._publish_backlog, 1.0)
        self._stores = [
            _Fact(_publisher(store, backend), 15.0)
            for backend in store.backends
            if backend != "memory"
        ]

    async def refresh(self, *, stores: bool = True) -> None:
        """Query what is not kept any more. Raises nothing: the metrics show what is away.

        Without `stores`, backends are not listed.
        """
        facts = (self._database, *(self._stores if stores else ()))
        tasks = [fact.begin() for fact in facts]
        await asyncio.wait(tasks, timeout=self._wait_seconds)
        if not tasks[0].done():
            _publish_database_away()

    async def aclose(self) -> None:
        """Cancel the queries under way."""
        tasks = [fact.task for fact in (self._database, *self._stores) if fact.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish_backlog(self) -> None:
        try:
            backlog = await self._queries.backlog()
        except DatabaseUnavailable:
            _publish_database_away()
            return
        for status, count in backlog.runs.items():
            metrics.RUNS.set(count, status)
        metrics.WEBHOOKS_PENDING.set(backlog.deliveries)
        metrics.OLDEST_WEBHOOK.set(backlog.oldest_delivery_seconds)
        metrics.DATABASE_UP.set(1)


def _publish_database_away() -> None:
    for status in UNSETTLED:
        metrics.RUNS.set(None, status)
    metrics.WEBHOOKS_PENDING.set(None)
    metrics.OLDEST_WEBHOOK.set(None)
    metrics.DATABASE_UP.set(0)


def _publisher(store: OutputStore, backend: str) -> Callable[[], Awaitable[None]]:
    async def publish() -> None:
        await _publish_usage(store, backend)

    return publish


async def _publish_usage(store: OutputStore, backend: str) -> None:
    """Publish the amount of outputs in a backend; none if it can't be reached."""
    try:
        usage = await store.usage_of(backend)
    except StorageError:
        metrics.STORAGE_UP.set(0, backend)
        for gauge in _USAGE_GAUGES:
            gauge.set(None, backend)
        return
    metrics.STORAGE_UP.set(1, backend)
    metrics.STORED_OUTPUTS.set(usage.count, backend)
    metrics.STORED_BYTES.set(usage.size_bytes, backend)
    metrics.OLDEST_OUTPUT.set(usage.oldest_age_seconds or 0.0, backend)
    metrics.STORAGE_FREE.set(usage.free_bytes, backend)


_USAGE_GAUGES: Final = (
    metrics.STORED_OUTPUTS,
    metrics.STORED_BYTES,
    metrics.OLDEST_OUTPUT,
    metrics.STORAGE_FREE,
)
