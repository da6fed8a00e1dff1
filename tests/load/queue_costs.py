"""What a run costs on each queue, and how late hints are: `python -m tests.load.queue_costs`.

A run is what the service makes of one: a hint published, received by a worker and acknowledged. Two
connections in this process stand for a process that accepts and a worker. CPU is this process's own
for both, without the server's, less that of the same loop without a queue.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

from app.db.urls import driver_arguments
from app.runs.queue.base import Driver, Hint, RunQueue
from app.runs.queue.nats import NatsDriver
from app.runs.queue.postgresql import PostgresqlDriver
from tests.databases import PostgreSQL
from tests.servers import NatsServer

_CREW = "idea"
_TOPIC = "costs"
_RUNS_PER_SECOND = 200
_BATCH = 100
_WAIT_SECONDS = 2.0
# Wake-ups of the publishing loop, each with the runs of that time.
_TICK_SECONDS = 0.02

MakeDriver = Callable[[], Driver]


@dataclass(frozen=True, slots=True)
class QueueCost:
    """CPU per run and how late hints and live messages are, in milliseconds."""

    queue: str
    runs: int
    cpu_ms: float
    dispatch_p50_ms: float
    dispatch_p99_ms: float
    live_p50_ms: float | None
    live_p99_ms: float | None


@dataclass(slots=True)
class _Times:
    """When each run was sent, and how many seconds later it arrived."""

    sent: dict[UUID, float] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)
    all_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    expected: int = 0

    def arrived(self, run_id: UUID) -> None:
        if (sent := self.sent.pop(run_id, None)) is not None:
            self.delays.append(time.perf_counter() - sent)
            if len(self.delays) == self.expected:
                self.all_arrived.set()

    def percentile(self, percent: int) -> float:
        return statistics.quantiles(self.delays, n=100)[percent - 1] * 1000


def measure(seconds: float) -> list[QueueCost]:
    """The cost of each queue, at 200 runs a second for so many seconds."""
    with (
        tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as folder,
        NatsServer(Path(folder) / "streams") as nats,
        PostgreSQL(Path(folder)) as server,
    ):
        uri = server.create_database()
        drivers: dict[str, MakeDriver] = {
            "NATS": lambda: NatsDriver([nats.url], prefix="costs", redelivery_seconds=30.0),
            "PostgreSQL": lambda: PostgresqlDriver(driver_arguments(uri), redelivery_seconds=30.0),
        }
        return [asyncio.run(_of_queue(name, make, seconds)) for name, make in drivers.items()]


async def _of_queue(name: str, make: MakeDriver, seconds: float) -> QueueCost:
    runs = int(_RUNS_PER_SECOND * seconds)
    async with _connected(make) as accepting, _connected(make) as worker:
        idle = await _idle_cpu_seconds(seconds)
        hints = _Times(expected=runs)
        receiving = asyncio.create_task(_receive_forever(worker, hints))
        begun = time.process_time()
        await _paced(seconds, hints, lambda run_id: accepting.publish_soon(Hint(run_id, _CREW)))
        await hints.all_arrived.wait()
        cpu_seconds = time.process_time() - begun - idle
        receiving.cancel()
        with suppress(asyncio.CancelledError):
            await receiving
        live = _Times(expected=runs)
        if worker.is_live:
            await worker.subscribe(_TOPIC, lambda message: live.arrived(UUID(bytes=message)))
            await _paced(seconds, live, lambda run_id: accepting.send_soon(_TOPIC, run_id.bytes))
            await live.all_arrived.wait()
        return QueueCost(
            queue=name,
            runs=runs,
            cpu_ms=cpu_seconds / runs * 1000,
            dispatch_p50_ms=hints.percentile(50),
            dispatch_p99_ms=hints.percentile(99),
            live_p50_ms=live.percentile(50) if live.delays else None,
            live_p99_ms=live.percentile(99) if live.delays else None,
        )


@asynccontextmanager
async def _connected(make: MakeDriver) -> AsyncIterator[RunQueue]:
    queue = RunQueue(make())
    await queue.start()
    async with aclosing(queue):
        yield queue


async def _receive_forever(worker: RunQueue, hints: _Times) -> None:
    while True:
        for delivery in await worker.receive(_CREW, _BATCH, _WAIT_SECONDS):
            hints.arrived(delivery.hint.run_id)
            worker.acknowledge(delivery)


async def _paced(seconds: float, times: _Times, send: Callable[[UUID], None]) -> None:
    per_tick = int(_RUNS_PER_SECOND * _TICK_SECONDS)
    begun = time.perf_counter()
    for tick in range(int(seconds / _TICK_SECONDS)):
        await asyncio.sleep(begun + tick * _TICK_SECONDS - time.perf_counter())
        for _ in range(per_tick):
            run_id = uuid4()
            times.sent[run_id] = time.perf_counter()
            send(run_id)


async def _idle_cpu_seconds(seconds: float) -> float:
    """CPU of the same publishing loop without a queue."""
    begun = time.process_time()
    await _paced(seconds, _Times(), lambda _: None)
    return time.process_time() - begun


def main() -> None:
    options = argparse.ArgumentParser(description="What a run costs on each queue.")
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = options.parse_args()
    costs = measure(chosen.seconds)
    for cost in costs:
        live = "" if cost.live_p99_ms is None else f", live {cost.live_p50_ms:.1f}"
        live += "" if cost.live_p99_ms is None else f"/{cost.live_p99_ms:.1f} ms"
        print(
            f"{cost.queue:12} {cost.cpu_ms:.2f} ms of CPU a run, "
            f"dispatch {cost.dispatch_p50_ms:.1f}/{cost.dispatch_p99_ms:.1f} ms{live} (p50/p99)"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(cost) for cost in costs], indent=2))


if __name__ == "__main__":
    main()
