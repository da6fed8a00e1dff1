"""What happens to deployments under load; each scenario fails if a promise is broken.

Each takes a site and a number of runs, and returns the figures that it measured.
"""

import asyncio
import itertools
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import (
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import aiohttp
import psutil
from sqlalchemy import Row, select, text, update

from app.access.api_keys import ApiKeys, Role
from app.api.batch_request import MAX_BATCH
from app.runs.events.event import EventType
from app.runs.models import CrewSlotRow, RunEvent, UserRun
from app.runs.persistence.queries import RunQueries
from app.runs.records import UNSETTLED
from app.schedules.models import ScheduleRow
from tests.faults.deployment import (
    LEASE_SECONDS,
    ROOT,
    Deployment,
    Serving,
    Site,
    deployed,
    until,
)
from tests.faults.link import Address, linked
from tests.load.generator import REPORTS
from tests.servers import NatsCluster, NatsServer, UnreliableProxy

Figures = dict[str, float]

# The first two tasks of the idea crew execute at once.
_CONCURRENT_TASKS = 2
# Runs of a killed worker, and as many others, that have clients which read their events.
_FOLLOWED = 20


class Scenario(Protocol):
    """Fails if a promise is broken."""

    async def __call__(self, site: Site, runs: int) -> Figures: ...


# A part of the outputs fits, so that a crash finds some in memory and some in S3.
_LITTLE_MEMORY_BYTES = 20_000
# Enough for a busy machine to do the rest of the largest load.
_END_SECONDS = 120.0
# A lease ends, and others look every 5 s; the rest is for a busy machine.
_TAKEOVER_SECONDS = LEASE_SECONDS + 5 + 5
# A run is followed from a fault until its end.
_FOLLOW_SECONDS = _TAKEOVER_SECONDS + _END_SECONDS


@dataclass(frozen=True, slots=True)
class _Pace:
    """Runs arrive over two model calls and take three: when all are accepted, none has ended, and
    each is somewhere between its first call and its last.
    """

    model_seconds: float
    arrival_seconds: float


# Runs of a worker that loses them.
_MANY = 15
# Each call lasts as long as those of the promise to many users.
_CROWDED = _Pace(1.0, 0.0)
_TIMES_SUBMITTED = 5
_MOST_SECONDS_TO_BEGIN = 2.0


def _pace(runs: int) -> _Pace:
    model_seconds = 1.0 + runs / 250  # accepting them takes the machine some time, too
    return _Pace(model_seconds, 1.9 * model_seconds)


@asynccontextmanager
async def _deployment(site: Site, pace: _Pace, **settings: object) -> AsyncIterator[Deployment]:
    if site.backend == "memory+s3":
        settings = {"memory_max_bytes": _LITTLE_MEMORY_BYTES, **settings}
    async with deployed(site, model_seconds=pace.model_seconds, **settings) as deployment:
        yield deployment
        await deployment.nothing_is_left_after_a_sweep()


async def process_killed(site: Site, runs: int) -> Figures:
    """SIGKILL with all runs in flight, then a restart on the same data."""
    pace = _pace(runs)
    async with _deployment(site, pace) as deployment:
        async with deployment.serving() as serving:
            await deployment.post(serving, runs, pace.arrival_seconds)
            await serving.kill()
        begun, lost_calls = time.monotonic(), deployment.stub.in_flight
        in_flight = await _unsettled(deployment)
        captured = await deployment.captured()
        deployment.stub.reset()
        async with deployment.serving() as serving:
            ready = time.monotonic() - begun
            await deployment.settled(_END_SECONDS)
            done = time.monotonic() - begun
            await serving.stop()
        assert len(deployment.accepted) == runs
        await deployment.every_run_succeeded_once()
        _only_what_was_not_captured_was_called_again(deployment, captured)
    return {
        "in flight at the kill": len(in_flight),
        "tasks captured": captured,
        "calls lost in flight": lost_calls,
        "calls after": deployment.stub.calls,
        "ready after s": ready,
        "all done after s": done,
    }


async def one_worker_killed(site: Site, runs: int) -> Figures:
    """One of two worker processes dies; the other goes on and takes over what was its."""
    pace = _pace(runs)
    async with _deployment(site, pace, workers=2) as deployment:
        async with deployment.serving(workers=2) as serving:
            await deployment.post(serving, runs, pace.arrival_seconds)
            rows = await deployment.rows()
            held = Counter(_pid(row.worker) for row in rows.values())
            victim, survivor = serving.workers()
            assert held[victim.pid], "the runs are not spread over the workers"
            assert held[survivor.pid], "the runs are not spread over the workers"
            theirs = {run for run, row in rows.items() if _pid(row.worker) == survivor.pid}
            begun = time.monotonic()
            victim.kill()
            await until(lambda: _holds_nothing(deployment, victim.pid), _TAKEOVER_SECONDS)
            recovered_after = time.monotonic() - begun
            await deployment.settled(_END_SECONDS)
            done = time.monotonic() - begun
            rows = await deployment.rows()
            assert all(rows[run].attempt == 1 for run in theirs), "the other was disturbed"
            await until(lambda: _has_workers(serving, 2), 10)
            assert survivor.is_running()
            await serving.stop()
        assert len(deployment.accepted) == runs
        await deployment.every_run_succeeded_once()
    return {
        "in flight in the killed one": held[victim.pid],
        "begun again": sum(row.attempt > 1 for row in rows.values()),
        "all taken over after s": recovered_after,
        "all done after s": done,
    }


@dataclass(frozen=True, slots=True)
class _Machines:
    """A process that only accepts runs, and workers, which share the runs by a queue."""

    deployment: Deployment
    pace: _Pace
    accepting: Serving
    workers: Sequence[Serving]
    stack: AsyncExitStack

    async def start_worker(self, **settings: object) -> Serving:
        """Another worker, until the end."""
        return await self.stack.enter_async_context(self.deployment.serving("worker", **settings))

    @asynccontextmanager
    async def load(self, runs: int) -> AsyncIterator[None]:
        """So many runs are in flight, and more are submitted until the end of the block.

        None may be refused.
        """
        is_over = asyncio.Event()

        async def submit() -> None:
            while not is_over.is_set():
                await self.deployment.post(self.accepting, 10, 0.5)

        await self.deployment.post(self.accepting, runs, self.pace.arrival_seconds)
        async with asyncio.TaskGroup() as clients:
            clients.create_task(submit())
            yield
            is_over.set()
        assert self.deployment.answers.keys() == {"202"}, self.deployment.answers

    async def claims(self, worker: Serving) -> None:
        """Wait until a worker has claimed runs that are submitted from now on."""
        before = set(await self.deployment.rows())
        (process,) = worker.workers()

        async def has_claimed() -> bool:
            rows = await self.deployment.rows()
            return any(
                _pid(row.worker) == process.pid for run, row in rows.items() if run not in before
            )

        await until(has_claimed, 30)

    async def all_claim(self) -> None:
        """Wait until each worker has claimed runs that are submitted from now on."""
        for worker in self.workers:
            await self.claims(worker)

    async def captured(self, run_ids: Iterable[UUID]) -> set[tuple[UUID, str]]:
        """The tasks of these runs that the first attempt has finished."""
        events = await RunQueries(self.deployment.database).events(list(run_ids))
        return {
            (event.run_id, event.data["name"])
            for event in events
            if event.type is EventType.TASK_FINISHED and event.seq and event.seq.attempt == 1
        }

    async def only_these_began_again(
        self, lost: Sequence[UUID], captured: Collection[tuple[UUID, str]]
    ) -> int:
        """Wait for the end of all runs; return the number of calls that were repeated.

        Fails if other runs began again, or these tasks were called again.
        """
        await self.deployment.settled(_END_SECONDS)
        rows = await self.deployment.rows()
        again = {run for run, row in rows.items() if row.attempt > 1}
        assert again <= set(lost), "another worker's run was disturbed"
        queries = RunQueries(self.deployment.database)
        for run in again:
            calls = (await queries.calls(run)).values()
            called = {(run, call.task) for call in calls if call.attempt > 1}
            assert called.isdisjoint(captured), "a captured task was executed again"
        return self.deployment.stub.calls - len(rows) * len(REPORTS)

    async def no_run_began_again(self) -> None:
        """Fail unless all runs have ended, each by its first attempt and without repeated calls."""
        await self.deployment.settled(_END_SECONDS)
        rows = await self.deployment.rows()
        assert {row.attempt for row in rows.values()} == {1}
        assert self.deployment.stub.calls == len(rows) * len(REPORTS)

    async def end_in_good_order(self) -> None:
        """Stop what still runs, and fail unless each run has succeeded once."""
        for serving in (self.accepting, *self.workers):
            if serving.is_running:
                await serving.stop()
        await self.deployment.every_run_succeeded_once()


@asynccontextmanager
async def _machines(
    site: Site, pace: _Pace, queue_url: str, **settings: object
) -> AsyncIterator[_Machines]:
    async with (
        _deployment(site, pace, queue_url=queue_url, **settings) as deployment,
        AsyncExitStack() as stack,
    ):
        commands = (["worker"], ["worker"], ["serve", "--accept-only"])
        *workers, accepting = await _started(deployment, stack, *commands)
        await until(lambda: _knows_crews(accepting), 20)
        yield _Machines(deployment, pace, accepting, workers, stack)


async def _knows_crews(accepting: Serving, headers: Mapping[str, str] | None = None) -> bool:
    url = f"{accepting.url}/api/crews"
    async with aiohttp.request("GET", url, headers=headers) as response:
        return bool((await response.json())["crews"])


async def machine_killed(site: Site, runs: int, *, queue: str, is_emptied: bool = False) -> Figures:
    """Of two workers that share the runs of an accepting process, one dies half-way.

    `queue` is nats or postgresql. With `is_emptied`, NATS dies then, too, and starts without its
    data. Clients follow runs through the accepting process meanwhile.
    """
    pace = _pace(runs)
    with ExitStack() as servers:
        nats, url = None, queue
        if queue == "nats":
            nats = servers.enter_context(NatsServer(site.folder / "nats"))
            url = nats.url
        async with _machines(site, pace, url, max_runs_in_flight=runs) as machines:
            deployment, accepting = machines.deployment, machines.accepting
            victim, survivor = machines.workers
            await deployment.post(accepting, runs, pace.arrival_seconds)
            (process,) = victim.workers()
            pid = process.pid
            held = _held_by(pid, await deployment.rows())
            async with asyncio.TaskGroup() as clients:
                for run in [*held[:_FOLLOWED], *deployment.accepted][: 2 * _FOLLOWED]:
                    clients.create_task(deployment.follow(accepting, run, _FOLLOW_SECONDS))
                begun = time.monotonic()
                await victim.kill()
                # Its leases have not ended yet.
                lost = _held_by(pid, await deployment.rows())
                assert lost, "the runs are not spread over the workers"
                if nats is not None and is_emptied:
                    nats.kill()
                    nats.forget()
                    await asyncio.to_thread(nats.start)
                await until(lambda: _holds_all(deployment, survivor, lost), _TAKEOVER_SECONDS)
                recovered_after = time.monotonic() - begun
                await deployment.settled(_END_SECONDS)
                done = time.monotonic() - begun
            repeated = deployment.stub.calls - runs * len(REPORTS)
            in_flight = _CONCURRENT_TASKS * len(lost)
            assert repeated <= in_flight, f"{repeated} calls repeated, {in_flight} were in flight"
            assert len(deployment.accepted) == runs
            await machines.end_in_good_order()
            rows = await deployment.rows()
            again = {run for run, row in rows.items() if row.attempt > 1}
            assert again <= set(lost), "another worker's run was disturbed"
    return {
        "in flight in the killed one": len(lost),
        "begun again": len(again),
        "calls repeated": repeated,
        "all claimed by others after s": recovered_after,
        "all done after s": done,
    }


async def crowd(site: Site, runs: int, *, queue: str) -> Figures:
    """One owner queues a crowd of runs over two accepting processes; another submits one run.

    `queue` is nats, postgresql, or empty for one process that executes what it accepts. The other's
    runs must each begin within two seconds, as it submits one after another.
    """
    with ExitStack() as servers:
        url = queue
        if queue == "nats":
            url = servers.enter_context(NatsServer(site.folder / "nats")).url
        async with (
            _deployment(site, _CROWDED, queue_url=url, auth="keys") as deployment,
            AsyncExitStack() as stack,
        ):
            commands = [["serve"]]
            if queue:
                commands = [*[["worker"]] * 2, *[["serve", "--accept-only"]] * 2]
            started = await _started(deployment, stack, *commands)
            accepting = started[-2:]
            keys = ApiKeys(deployment.database)
            many, other = [
                {"Authorization": f"Bearer {await keys.create(name, Role.USER)}"}
                for name in ("many", "other")
            ]
            for one in accepting:
                await until(partial(_knows_crews, one, many), 20)
            async with asyncio.TaskGroup() as clients:
                for number in range(runs // MAX_BATCH):
                    clients.create_task(_submitted_crowd(accepting[number % len(accepting)], many))
            waits = [
                await _wait_to_begin(deployment, accepting[number % len(accepting)], other)
                for number in range(_TIMES_SUBMITTED)
            ]
            left = len(await _unsettled(deployment))
            for one in started:
                one.end()
            async with deployment.database.write() as connection:
                await connection.execute(update(UserRun).values(status="cancelled"))
    assert left > _TIMES_SUBMITTED, "the crowd was over"
    assert max(waits) < _MOST_SECONDS_TO_BEGIN, waits
    return {
        "of the crowd not settled then": left,
        "first wait s": waits[0],
        "median wait s": median(waits),
        "longest wait s": max(waits),
    }


async def _submitted_crowd(serving: Serving, headers: Mapping[str, str]) -> None:
    body = {"crew": "idea", "inputs": [{"interest_area": "AI / Automation"}] * MAX_BATCH}
    url = f"{serving.url}/api/runs/batch"
    async with aiohttp.request("POST", url, json=body, headers=headers) as response:
        assert response.status == 202, await response.text()


async def _wait_to_begin(
    deployment: Deployment, serving: Serving, headers: Mapping[str, str]
) -> float:
    """Submit a run, and wait until its first task begins; the seconds between the two."""
    url, body = f"{serving.url}/api/runs", {"crew": "idea"}
    async with aiohttp.request("POST", url, json=body, headers=headers) as response:
        answer = await response.json()
        assert response.status == 202, answer
    begun: list[datetime] = []

    async def has_begun() -> bool:
        query = select(RunEvent.at).where(
            RunEvent.run_id == UUID(answer["run_id"]), RunEvent.type == EventType.TASK_STARTED
        )
        async with deployment.database.read() as connection:
            begun[:] = await connection.scalars(query)
        return bool(begun)

    await until(has_begun, _END_SECONDS)
    return (min(begun) - datetime.fromisoformat(answer["created_at"])).total_seconds()


async def workers_replaced(site: Site, runs: int, *, queue: str) -> Figures:
    """Two workers are stopped by SIGTERM and replaced, one after the other, under load.

    `queue` is nats or postgresql.
    """
    with ExitStack() as servers:
        url = queue
        if queue == "nats":
            url = servers.enter_context(NatsServer(site.folder / "nats")).url
        async with _machines(site, _pace(runs), url, shutdown_seconds=60) as machines:
            begun = time.monotonic()
            async with machines.load(runs):
                for old in machines.workers:
                    await machines.claims(old)
                    await old.stop()
                    await machines.claims(await machines.start_worker())
            seconds = time.monotonic() - begun
            await machines.no_run_began_again()
            await machines.end_in_good_order()
            return {"accepted": len(machines.deployment.accepted), "replaced within s": seconds}


async def network_cut(site: Site, runs: int) -> Figures:
    """One of two workers can't reach NATS for a while, under load."""
    with NatsServer(site.folder / "nats") as nats:
        async with _machines(site, _pace(runs), nats.url, shutdown_seconds=60) as machines:
            with UnreliableProxy(nats.url) as proxy:
                cut_off = await machines.start_worker(
                    queue_url=proxy.endpoint_url.replace("http:", "nats:")
                )
                async with machines.load(runs):
                    await machines.claims(cut_off)
                    proxy.mode = "refuse"
                    await until(lambda: _has_logged(cut_off, "The queue is away"), 30)
                    for worker in machines.workers:
                        await machines.claims(worker)
                    proxy.mode = "pass"
                    await machines.claims(cut_off)
                await machines.no_run_began_again()
                await cut_off.stop()
            await machines.end_in_good_order()
            return {"accepted": len(machines.deployment.accepted)}


async def machine_frozen(site: Site, runs: int, *, queue: str) -> Figures:
    """SIGSTOP of one of two workers until the other has its runs, then SIGCONT, under load."""
    with _queue(site, queue) as url:
        async with _machines(site, _pace(runs), url, shutdown_seconds=60) as machines:
            deployment, (frozen, _) = machines.deployment, machines.workers
            (process,) = frozen.workers()
            async with machines.load(runs):
                await until(lambda: _holds_many(deployment, process.pid), 30)
                await _freeze(deployment, frozen, inside_a_write=False)
                begun = time.monotonic()
                lost = _held_by(process.pid, await deployment.rows())
                await until(lambda: _holds_nothing(deployment, process.pid), 2 * _TAKEOVER_SECONDS)
                seconds = time.monotonic() - begun
                captured = await machines.captured(lost)
                frozen.send(signal.SIGCONT)
                await machines.claims(frozen)
            repeated = await machines.only_these_began_again(lost, captured)
            await machines.end_in_good_order()
    return {"in flight when frozen": len(lost), "calls repeated": repeated, "taken over s": seconds}


async def accepting_frozen(site: Site, runs: int, *, queue: str) -> Figures:
    """SIGSTOP of an accepting process whose clients follow runs, until these have ended.

    After SIGCONT the clients get all events, and it accepts again.
    """
    with _queue(site, queue) as url:
        async with _machines(site, _pace(runs), url) as machines:
            deployment, accepting = machines.deployment, machines.accepting
            await deployment.post(accepting, runs, machines.pace.arrival_seconds)
            async with asyncio.TaskGroup() as clients:
                for run in list(deployment.accepted)[-_FOLLOWED:]:
                    clients.create_task(deployment.follow(accepting, run, _FOLLOW_SECONDS))
                await until(lambda: _streams(accepting, _FOLLOWED), 20)
                accepting.send(signal.SIGSTOP)
                begun = time.monotonic()
                await deployment.settled(_END_SECONDS)
                # Longer than a poll looks back.
                await asyncio.sleep(max(0.0, begun + 20 - time.monotonic()))
                accepting.send(signal.SIGCONT)
            await deployment.post(accepting, 5, 0)
            await machines.no_run_began_again()
            await machines.end_in_good_order()
            return {"accepted": len(deployment.accepted)}


async def packets_dropped(site: Site, runs: int, *, to: str) -> Figures:
    """All packets between one of three workers and a server are lost for a while, under load.

    `to` is nats or database. The connections stay open.
    """
    database = urlsplit(site.servers.postgresql.uri)
    folder = parse_qs(database.query)["host"][0]
    with NatsServer(site.folder / "nats") as nats:
        address: Address = ("127.0.0.1", nats.port)
        if to == "database":
            address = f"{folder}/.s.PGSQL.5432"
        async with (
            linked(address) as link,
            _machines(site, _pace(runs), nats.url, shutdown_seconds=60) as machines,
        ):
            deployment = machines.deployment
            settings = {"queue_url": f"nats://127.0.0.1:{link.port}"}
            if to == "database":
                name = urlsplit(deployment.settings.database_url).path
                url = f"postgresql://{database.username}:@127.0.0.1:{link.port}{name}"
                settings = {"database_url": url}
            cut_off = await machines.start_worker(**settings)
            (process,) = cut_off.workers()
            async with machines.load(runs):
                await until(lambda: _holds_many(deployment, process.pid), 30)
                link.cut()
                lost = _held_by(process.pid, await deployment.rows())
                begun, in_flight = time.monotonic(), len(lost)
                if to == "database":
                    await until(
                        lambda: _holds_nothing(deployment, process.pid), 2 * _TAKEOVER_SECONDS
                    )
                else:
                    await until(lambda: _has_logged(cut_off, "The queue is away"), 60)
                seconds, captured = time.monotonic() - begun, await machines.captured(lost)
                for worker in machines.workers:
                    await machines.claims(worker)
                link.restore()
                await machines.claims(cut_off)
            if to == "nats":
                lost = []
            repeated = await machines.only_these_began_again(lost, captured)
            await cut_off.stop()
            await machines.end_in_good_order()
    return {
        "in flight at the cut": in_flight,
        "calls repeated": repeated,
        "noticed after s": seconds,
    }


async def clock_off(site: Site, runs: int, *, seconds: int) -> Figures:
    """The clock of one of three workers is off, under load."""
    with NatsServer(site.folder / "nats") as nats:
        async with _machines(site, _pace(runs), nats.url, shutdown_seconds=60) as machines:
            wrong = await machines.start_worker(**_fake_time(seconds))
            async with machines.load(runs):
                await machines.claims(wrong)
                # Leases of others, and its own, would end meanwhile if clocks counted.
                await asyncio.sleep(LEASE_SECONDS + 5)
            await machines.no_run_began_again()
            rows = (await machines.deployment.rows()).values()
            (process,) = wrong.workers()
            executed = sum(_pid(row.worker) == process.pid for row in rows)
            assert executed
            now = datetime.now(UTC)
            assert all(abs((now - row.finished_at).total_seconds()) < 50 for row in rows)
            await wrong.stop()
            await machines.end_in_good_order()
            return {"accepted": len(rows), "executed by it": executed}


async def _without(server: NatsServer, number: signal.Signals, machines: _Machines) -> None:
    """SIGKILL or SIGSTOP a server until each worker has claimed runs without it."""
    os.kill(server.pid, number)
    await machines.all_claim()
    if number == signal.SIGSTOP:
        os.kill(server.pid, signal.SIGCONT)
    else:
        server.kill()
        await asyncio.to_thread(server.start)


async def cluster_of_nats(site: Site, runs: int) -> Figures:
    """Of three NATS servers, each that leads is killed or frozen; then all start without data."""
    with NatsCluster(site.folder / "nats") as cluster:
        async with _machines(
            site, _pace(runs), cluster.url, queue_replicas=3, shutdown_seconds=60
        ) as machines:
            async with machines.load(runs):
                for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
                    await machines.all_claim()
                    await _without(await cluster.leader(), number, machines)
                for server in cluster.servers:
                    server.kill()
                    server.forget()
                for server in cluster.servers:
                    await asyncio.to_thread(server.start)
                begun = time.monotonic()
                await machines.all_claim()
                seconds = time.monotonic() - begun
            await machines.no_run_began_again()
            await machines.end_in_good_order()
            accepted = len(machines.deployment.accepted)
            return {"accepted": accepted, "claimed again after the emptying s": seconds}


async def follower_of_nats(site: Site, runs: int) -> Figures:
    """Of three NATS servers, one that does not lead is killed, then frozen, under load."""
    with NatsCluster(site.folder / "nats") as cluster:
        async with _machines(
            site, _pace(runs), cluster.url, queue_replicas=3, shutdown_seconds=60
        ) as machines:
            async with machines.load(runs):
                for number in (signal.SIGKILL, signal.SIGSTOP):
                    await machines.all_claim()
                    await _without(await cluster.follower(), number, machines)
                await machines.all_claim()
            await machines.no_run_began_again()
            await machines.end_in_good_order()
            return {"accepted": len(machines.deployment.accepted)}


async def machines_without_objects(
    site: Site, runs: int, *, is_frozen: bool, away_seconds: float
) -> Figures:
    """SIGKILL or SIGSTOP of the S3 server of two workers, under load, and then its return.

    Runs that can't store an output fail, and name the cause.
    """
    server = site.servers.seaweedfs
    with NatsServer(site.folder / "nats") as nats:
        async with _machines(site, _pace(runs), nats.url, shutdown_seconds=60) as machines:
            deployment = machines.deployment
            async with machines.load(runs):
                await machines.all_claim()
                if is_frozen:
                    os.kill(server.pid, signal.SIGSTOP)
                else:
                    server.kill()
                try:
                    await asyncio.sleep(away_seconds)
                finally:
                    if is_frozen:
                        os.kill(server.pid, signal.SIGCONT)
                    else:
                        await asyncio.to_thread(server.start)
            await deployment.settled(_END_SECONDS)
            before = await deployment.rows()
            await until(partial(asyncio.to_thread, site.servers.stores_objects), _END_SECONDS)
            await deployment.post(machines.accepting, 10, 1.0)
            await deployment.settled(_END_SECONDS)
            after = await deployment.rows()
            for serving in (machines.accepting, *machines.workers):
                await serving.stop()
        await deployment.every_run_is_settled_once()
        assert deployment.answers.keys() == {"202"}, deployment.answers
        assert {row.attempt for row in after.values()} == {1}
        assert all(after[run].status == "succeeded" for run in after.keys() - before.keys())
        ends = Counter(row.status for row in before.values())
        assert ends.keys() <= {"succeeded", "failed"}
        errors = {row.error_type for row in before.values() if row.status == "failed"}
        assert errors <= {"storage_unavailable"}
    return {"succeeded": ends["succeeded"], "failed, storage_unavailable": ends["failed"]}


async def disk_full(site: Site, runs: int) -> Figures:
    """The disk of the outputs of a service is full for a while."""
    pace = _pace(runs)
    with _small_disk(site.folder / "small") as small:
        async with _deployment(site, pace, temp_dir=small) as deployment:
            async with deployment.serving() as serving:
                await deployment.post(serving, 5, 0)
                await deployment.settled(_END_SECONDS)
                filler = small / "filler"
                with suppress(OSError), filler.open("wb", buffering=0) as file:
                    while file.write(bytes(4096)):
                        pass
                await deployment.post(serving, runs, pace.arrival_seconds)
                await deployment.settled(_END_SECONDS)
                during = Counter(row.status for row in (await deployment.rows()).values())
                filler.unlink()
                await deployment.post(serving, 5, 0)
                await deployment.settled(_END_SECONDS)
                await serving.stop()
            rows = (await deployment.rows()).values()
            ends = Counter(row.status for row in rows)
            assert deployment.answers == {"202": runs + 10}, deployment.answers
            assert ends["succeeded"] == during["succeeded"] + 5, ends
            assert ends["failed"] == during["failed"] == len(rows) - ends["succeeded"], ends
            assert ends["failed"], "the disk was not full"
            failed = {row.error_type for row in rows if row.status == "failed"}
            assert failed == {"storage_unavailable"}
            await deployment.nothing_is_left_after_a_sweep()
            return {"failed meanwhile": ends["failed"], "succeeded": ends["succeeded"]}


async def upgraded(site: Site, runs: int, *, queue: str) -> Figures:
    """All processes of the commit before are replaced, one after the other, under load.

    Old and new ones share the database and the queue meanwhile.
    """
    with _commit_before(site.folder / "old") as old, _queue(site, queue) as url:
        async with _machines(
            site, _pace(runs), url, pythonpath=old, shutdown_seconds=60
        ) as machines:
            deployment, new = machines.deployment, {"pythonpath": ROOT}
            async with machines.load(runs):
                for worker in machines.workers:
                    await machines.claims(worker)
                    replacement = await machines.start_worker(**new)
                    await machines.claims(replacement)
                    await worker.stop()
                    await machines.claims(replacement)
            accepting = await machines.stack.enter_async_context(
                deployment.serving("serve", "--accept-only", **new)
            )
            await machines.accepting.stop()
            await deployment.post(accepting, 20, 0)
            await machines.no_run_began_again()
            await machines.end_in_good_order()
            return {"accepted": len(deployment.accepted)}


@contextmanager
def _queue(site: Site, queue: str) -> Iterator[str]:
    """The QUEUE_URL of a broker: nats has a server of its own."""
    if queue != "nats":
        yield queue
        return
    with NatsServer(site.folder / "nats") as nats:
        yield nats.url


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of one megabyte. Needs the right to mount it."""
    folder.mkdir(parents=True)
    mount = ["/bin/mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/bin/umount", str(folder)], check=True)


@contextmanager
def _commit_before(folder: Path) -> Iterator[Path]:
    """The code of the commit before this one, or of FAULTS_OLD_COMMIT."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    commit = os.environ.get("FAULTS_OLD_COMMIT", "HEAD~1")
    git = ["/usr/bin/git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def _fake_time(seconds: int) -> Mapping[str, object]:
    """The environment of a process whose clock is off, by Debian's `faketime`."""
    libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert libraries, "install faketime"
    return {
        "ld_preload": libraries[0],
        "faketime": f"{seconds:+}s",
        "faketime_dont_fake_monotonic": 1,
    }


async def _streams(serving: Serving, count: int) -> bool:
    """Whether so many clients read events."""
    async with aiohttp.request("GET", f"{serving.url}/metrics") as response:
        text = await response.text()
    found = re.search(r"^crewcapture_subscribers\S* (\d+)", text, re.MULTILINE)
    return found is not None and int(found[1]) >= count


async def machines_without_database(site: Site, runs: int, away_seconds: float) -> Figures:
    """PostgreSQL dies while an accepting process and two workers have runs, and comes back."""
    pace, server = _pace(runs), site.servers.postgresql
    with NatsServer(site.folder / "nats") as nats:
        async with _machines(site, pace, nats.url) as machines:
            deployment = machines.deployment
            await deployment.post(machines.accepting, runs, pace.arrival_seconds)
            assert await _unsettled(deployment)
            await asyncio.to_thread(server.kill)
            try:
                await until(lambda: _is_unready(machines.accepting), 5)
                await deployment.post(machines.accepting, 10, away_seconds)
            finally:
                await asyncio.to_thread(server.start)
            begun = time.monotonic()
            await until(machines.accepting.ready, 20)
            await deployment.post(machines.accepting, 5, 0)
            assert deployment.answers == {"202": runs + 5, "503": 10}
            await deployment.settled(_END_SECONDS)
            done = time.monotonic() - begun
            await machines.end_in_good_order()
            return {"all done after s": done}


async def limits_shared(site: Site, runs: int) -> Figures:
    """Two workers share the limit of a model, and that of a crew."""
    limit, of_crew = 600, 2
    crews_file = site.folder / "crews.toml"
    site.folder.mkdir(parents=True, exist_ok=True)
    crews_file.write_text(f"[idea]\nmax_runs_in_flight = {of_crew}\n")
    settings = {"llm_requests_per_minute": limit, "crews_file": crews_file}
    with NatsServer(site.folder / "nats") as nats:
        async with _machines(site, _Pace(0.05, 0.0), nats.url, **settings) as machines:
            begun = time.monotonic()
            await machines.deployment.post(machines.accepting, runs, 0)
            await machines.deployment.settled(_END_SECONDS)
            seconds = time.monotonic() - begun
            rows = (await machines.deployment.rows()).values()
            assert len({row.worker for row in rows}) == 2
            await machines.end_in_good_order()
    # A tenth of a minute's permits may be spent at once, by both workers together.
    calls, at_once = runs * len(REPORTS), limit // 10
    least_seconds = (calls - at_once) * 60 / (limit - at_once)
    assert seconds >= least_seconds, f"{calls} calls in {seconds:.1f} s"
    assert _peak(rows) == of_crew
    return {"all done after s": seconds, "least s": least_seconds}


async def crew_limited(site: Site, runs: int) -> Figures:
    """Two services share the limit of a crew, whose runs both accept."""
    of_crew = 3
    crews_file = site.folder / "crews.toml"
    site.folder.mkdir(parents=True, exist_ok=True)
    crews_file.write_text(f"[idea]\nmax_runs_in_flight = {of_crew}\n")
    async with (
        _deployment(site, _Pace(0.05, 0.0), crews_file=crews_file) as deployment,
        AsyncExitStack() as stack,
    ):
        services = await _started(deployment, stack, ["serve"], ["serve"])
        begun = time.monotonic()
        await asyncio.gather(*(deployment.post(one, runs // 2, 0) for one in services))
        await deployment.settled(_END_SECONDS)
        seconds = time.monotonic() - begun
        rows = (await deployment.rows()).values()
        assert len({row.worker for row in rows}) == 2
        assert _peak(rows) == of_crew
        await deployment.every_run_succeeded_once()
        await until(lambda: _all_crew_slots_are_free(deployment), 5)
    return {"all done after s": seconds}


async def _all_crew_slots_are_free(deployment: Deployment) -> bool:
    async with deployment.database.read() as connection:
        return not list(await connection.scalars(select(CrewSlotRow.run_id)))


def _peak(rows: Iterable[Row[Any]]) -> int:
    """The most runs that were executed at a time, over all processes."""
    steps = sorted(step for row in rows for step in ((row.started_at, 1), (row.finished_at, -1)))
    return max(itertools.accumulate(step for _, step in steps))


async def _has_logged(serving: Serving, text: str) -> bool:
    return text in serving.log()


def _held_by(pid: int, rows: Mapping[UUID, Row[Any]]) -> Sequence[UUID]:
    """The runs that a process has, and that are not settled."""
    return [run for run, row in rows.items() if _pid(row.worker) == pid and row.status in UNSETTLED]


async def killed_at_a_due_time(site: Site, runs: int) -> Figures:
    """Of three services that share as many schedules, one dies as it submits their runs."""
    async with _deployment(site, _Pace(0.2, 0.0)) as deployment, AsyncExitStack() as stack:
        services = [await stack.enter_async_context(deployment.serving()) for _ in range(3)]
        await asyncio.gather(*(_scheduled(services[0]) for _ in range(runs)))
        due = datetime.now(UTC) + timedelta(seconds=1)
        async with deployment.database.write() as connection:
            await connection.execute(update(ScheduleRow).values(next_due=due))
        await until(lambda: _has_runs(deployment, 1), 30)
        first = next(iter((await deployment.rows()).values()))
        (victim,) = [one for one in services if one.workers()[0].pid == _pid(first.worker)]
        await victim.kill()
        killed, missing = datetime.now(UTC), runs - len(await deployment.rows())
        await until(lambda: _has_runs(deployment, runs), _END_SECONDS)
        submitted = datetime.now(UTC)
        await deployment.settled(_END_SECONDS)
        query = select(UserRun.schedule_id, UserRun.due_at)
        async with deployment.database.read() as connection:
            submitted_for = Counter(await connection.execute(query))
            schedules = set(await connection.scalars(select(ScheduleRow.schedule_id)))
        assert len(schedules) == runs
        assert submitted_for == {(schedule_id, due): 1 for schedule_id in schedules}
        await deployment.every_run_succeeded_once()
        for one in services:
            if one is not victim:
                await one.stop()
    return {
        "not submitted at the kill": missing,
        "all submitted after s": (submitted - killed).total_seconds(),
    }


async def _scheduled(serving: Serving) -> None:
    """Create a schedule whose own times are far away."""
    body = {"crew": "idea", "cron": "0 0 29 2 *"}
    async with aiohttp.request("POST", f"{serving.url}/api/schedules", json=body) as response:
        assert response.status == 201, await response.text()


async def _has_runs(deployment: Deployment, count: int) -> bool:
    return len(await deployment.rows()) >= count


async def poisonous_run(site: Site, runs: int, max_attempts: int) -> Figures:
    """One run of many ends its process, wherever it is executed."""
    crews = {"crews": "work=tests.deeds:create"}
    async with _deployment(site, _pace(runs), max_attempts=max_attempts, **crews) as deployment:
        async with deployment.serving(workers=2) as serving:
            ids = await asyncio.gather(*(_submitted(serving, "stay") for _ in range(runs)))
            poison = await _submitted(serving, "exit")
            begun = time.monotonic()
            await deployment.settled(_END_SECONDS)
            done = time.monotonic() - begun
            await until(lambda: _has_workers(serving, 2), 10)
            await serving.stop()
        rows = await deployment.rows()
        await deployment.each_task_has_calls(ids)
    assert {rows[run_id].status for run_id in ids} == {"succeeded"}
    assert all(set(rows[run_id].outputs) == {"first", "second"} for run_id in ids)
    assert rows[poison].status == "failed"
    assert rows[poison].error_type == "worker_lost"
    assert "ended its own process (exit status 7) while it was executed alone" in rows[poison].error
    attempts = Counter(row.attempt for row in rows.values())
    assert attempts[1] < runs, "the poison ended nothing"
    return {
        "begun again": runs + 1 - attempts[1],
        "isolated": sum(row.attempt >= max_attempts for row in rows.values()),
        "all done after s": done,
    }


async def _submitted(serving: Serving, deed: str) -> UUID:
    body = {"crew": "work", "inputs": {"deed": deed}}
    async with aiohttp.request("POST", f"{serving.url}/api/runs", json=body) as response:
        answer = await response.json()
        assert response.status == 202, answer
        return UUID(answer["run_id"])


async def worker_frozen(site: Site, runs: int) -> Figures:
    """SIGSTOP past the lease, then SIGCONT: what the frozen one still does changes nothing."""
    pace = _pace(runs)
    async with _deployment(site, pace) as deployment, AsyncExitStack() as stack:
        first, other = await _started(deployment, stack, [], [])
        await deployment.post(first, runs, pace.arrival_seconds)
        # However long it takes to find it outside of a write, no run ends by its last call.
        deployment.stub.delay_seconds = _END_SECONDS
        await _freeze(deployment, first, inside_a_write=False)
        deployment.stub.delay_seconds = pace.model_seconds
        begun = time.monotonic()
        in_flight = await _unsettled(deployment)
        assert in_flight
        await deployment.settled(_END_SECONDS)
        done = time.monotonic() - begun
        assert done > LEASE_SECONDS / 2, "taken over from a worker whose lease had not ended"
        await deployment.every_run_succeeded_once()
        before = await deployment.rows()
        first.send(signal.SIGCONT)
        # It ends in good order, so whatever it still wanted to write is written by then.
        await first.stop(90)
        assert await deployment.rows() == before, "the frozen worker changed a row"
        await deployment.every_run_succeeded_once()
        await other.stop()
    return {"in flight when frozen": len(in_flight), "taken over and done after s": done}


async def worker_frozen_inside_a_write(site: Site, runs: int) -> Figures:
    """SIGSTOP in the midst of a transaction, past the lease, then SIGCONT.

    On SQLite nobody else can write meanwhile, so the others wait; on PostgreSQL they go on.
    """
    pace = _pace(runs)
    async with _deployment(site, pace) as deployment, AsyncExitStack() as stack:
        frozen, other = await _started(deployment, stack, [], [])
        async with asyncio.TaskGroup() as clients:
            clients.create_task(deployment.post(frozen, runs, pace.arrival_seconds))
            clients.create_task(deployment.post(other, runs, pace.arrival_seconds))
            await until(lambda: _has_accepted(deployment, runs), _END_SECONDS)
            await _freeze(deployment, frozen, inside_a_write=True)
            begun = time.monotonic()
            in_flight = len(await _unsettled(deployment))
            accepted = len(deployment.accepted)
            if site.database == "postgresql":
                await deployment.settled(_END_SECONDS)
                done = time.monotonic() - begun
            else:
                await asyncio.sleep(LEASE_SECONDS + 5)
            frozen.send(signal.SIGCONT)
            begun = time.monotonic()
        if site.database == "sqlite":
            await deployment.settled(_END_SECONDS)
            done = time.monotonic() - begun
        await frozen.stop(90)
        await other.stop()
        await deployment.every_run_succeeded_once()
        rows = await deployment.rows()
    since = "the freeze" if site.database == "postgresql" else "SIGCONT"
    return {
        "in flight when frozen": in_flight,
        "accepted meanwhile": len(deployment.accepted) - accepted,
        "begun again": sum(row.attempt > 1 for row in rows.values()),
        f"all done s after {since}": done,
    }


async def stopped(site: Site, runs: int, workers: int = 1) -> Figures:
    """SIGTERM: what ends in time ends, the rest is handed back to the next start."""
    pace = _pace(runs)
    patience = pace.model_seconds * 1.5
    async with _deployment(site, pace, lease_seconds=300) as deployment:
        async with deployment.serving(shutdown_seconds=patience, workers=workers) as serving:
            await deployment.post(serving, runs, pace.arrival_seconds)
            begun = time.monotonic()
            serving.send_all(signal.SIGTERM)
            await until(lambda: _is_unready(serving), 5)
            accepted = len(deployment.accepted)
            await deployment.post(serving, 1, 0)
            assert len(deployment.accepted) == accepted, "accepted while it stops"
            await serving.exited(patience + 10)
            stopped_after = time.monotonic() - begun
        handed_back = await _handed_back(deployment)
        assert len(handed_back) < accepted == runs, "no run was let end"
        captured = await deployment.captured()
        deployment.stub.reset()
        done = await _next_start(deployment)
        _only_what_was_not_captured_was_called_again(deployment, captured)
    return {
        "ended in time": accepted - len(handed_back),
        "handed back": len(handed_back),
        "stopped after s": stopped_after,
        "calls after": deployment.stub.calls,
        "done s after ready": done,
    }


async def stopped_at_once(site: Site, runs: int, workers: int = 1) -> Figures:
    """SIGTERM twice: the second doesn't wait for runs, and loses none."""
    pace = _pace(runs)
    async with _deployment(site, pace, lease_seconds=300) as deployment:
        async with deployment.serving(shutdown_seconds=300, workers=workers) as serving:
            await deployment.post(serving, runs, pace.arrival_seconds)
            deployment.stub.delay_seconds = 300  # no run ends from here on by itself
            serving.send(signal.SIGTERM)
            await until(lambda: _have_received(serving, workers), 20)
            await until(lambda: _is_unready(serving), 10)
            await asyncio.sleep(1.5)  # sooner, it would count as the same signal
            assert serving.is_running
            begun = time.monotonic()
            serving.send(signal.SIGTERM)
            await serving.exited(20)
            stopped_after = time.monotonic() - begun
        deployment.stub.delay_seconds = pace.model_seconds
        assert len(deployment.accepted) == runs
        handed_back = await _handed_back(deployment)
        assert handed_back
        captured = await deployment.captured()
        deployment.stub.reset()
        done = await _next_start(deployment)
        _only_what_was_not_captured_was_called_again(deployment, captured)
    return {
        "handed back": len(handed_back),
        "stopped after s": stopped_after,
        "calls after": deployment.stub.calls,
        "done s after ready": done,
    }


async def database_killed(site: Site, runs: int, away_seconds: float) -> Figures:
    """PostgreSQL dies while runs end and new ones arrive, and comes back."""
    pace, server = _pace(runs), site.servers.postgresql
    async with _deployment(site, pace) as deployment, AsyncExitStack() as stack:
        serving = await stack.enter_async_context(deployment.serving())
        async with asyncio.TaskGroup() as clients:
            # The last of them arrive while it is away.
            clients.create_task(deployment.post(serving, runs, pace.arrival_seconds))
            await asyncio.sleep(pace.arrival_seconds * 0.7)
            await asyncio.to_thread(server.kill)
            accepted_before = len(deployment.accepted)
            await until(lambda: _is_unready(serving), 5)
            accepted = len(deployment.accepted)
            await deployment.post(serving, 20, away_seconds)
            assert len(deployment.accepted) == accepted, "acknowledged without a database"
            await asyncio.to_thread(server.start)
        begun = time.monotonic()
        await until(serving.ready, 10)
        ready = time.monotonic() - begun
        await deployment.settled(_END_SECONDS)
        done = time.monotonic() - begun
        accepted = len(deployment.accepted)
        await deployment.post(serving, 5, 0)
        assert len(deployment.accepted) == accepted + 5, "it takes no runs again"
        await deployment.settled(_END_SECONDS)
        await serving.stop()
        assert deployment.answers.keys() <= {"202", "503"}, deployment.answers
        await deployment.every_run_succeeded_once()
        rows = await deployment.rows()
    return {
        "accepted before": accepted_before,
        "503 meanwhile": deployment.answers["503"],
        "saved without an answer": len(rows) - len(deployment.accepted),
        "begun again": sum(row.attempt > 1 for row in rows.values()),
        "ready again after s": ready,
        "all done after s": done,
    }


async def objects_killed(site: Site, runs: int, away_seconds: float) -> Figures:
    """The S3 server dies while runs store outputs, and comes back.

    With a chain the runs go on; without, those that meet the outage fail and say so.
    """
    pace, server = _pace(runs), site.servers.seaweedfs
    async with _deployment(site, pace, memory_max_bytes=100_000_000) as deployment:
        async with deployment.serving() as serving:
            await deployment.post(serving, runs, pace.arrival_seconds)
            server.kill()
            try:
                await deployment.post(serving, 20, away_seconds)
                if "+" in site.backend:
                    await deployment.settled(_END_SECONDS)
            finally:
                await asyncio.to_thread(server.start)
            begun = time.monotonic()
            await until(serving.ready, 60)
            ready = time.monotonic() - begun
            await deployment.settled(_END_SECONDS)
            before = await deployment.rows()
            accepted = len(deployment.accepted)
            await deployment.post(serving, 5, 0)
            assert len(deployment.accepted) == accepted + 5, "it takes no runs again"
            await deployment.settled(_END_SECONDS)
            after = await deployment.rows()
            assert all(after[run].status == "succeeded" for run in after.keys() - before.keys())
            await serving.stop()
        ends = Counter(row.status for row in before.values())
        assert set(deployment.answers) == {"202"}, deployment.answers
        assert deployment.accepted.keys() == after.keys()
        if "+" in site.backend:
            await deployment.every_run_succeeded_once()
        else:
            assert set(ends) <= {"succeeded", "failed"}
            errors = {row.error_type for row in before.values() if row.status == "failed"}
            assert errors <= {"storage_unavailable"}
    return {
        "succeeded": ends["succeeded"],
        "failed, storage_unavailable": ends["failed"],
        "ready again after s": ready,
    }


def _only_what_was_not_captured_was_called_again(deployment: Deployment, captured: int) -> None:
    needed = len(REPORTS) * len(deployment.accepted) - captured
    assert deployment.stub.calls <= needed, f"{deployment.stub.calls} calls, {needed} were needed"


async def _started(
    deployment: Deployment, stack: AsyncExitStack, *commands: Sequence[str]
) -> Sequence[Serving]:
    """Services side by side, each with the words of its command."""
    async with asyncio.TaskGroup() as starts:
        started = [
            starts.create_task(stack.enter_async_context(deployment.serving(*command)))
            for command in commands
        ]
    return [task.result() for task in started]


async def _next_start(deployment: Deployment) -> float:
    """Start again, and wait until all is done; seconds since it was ready."""
    async with deployment.serving() as serving:
        begun = time.monotonic()
        await deployment.settled(_END_SECONDS)  # much less than the lease
        done = time.monotonic() - begun
        await serving.stop()
    await deployment.every_run_succeeded_once()
    return done


async def _unsettled(deployment: Deployment) -> set[UUID]:
    rows = await deployment.rows()
    return {run_id for run_id, row in rows.items() if row.status in UNSETTLED}


async def _handed_back(deployment: Deployment) -> set[UUID]:
    left = await _unsettled(deployment)
    rows = await deployment.rows()
    assert all(rows[run_id].lease_until is None for run_id in left), "not let go of"
    return left


async def _is_unready(serving: Serving) -> bool:
    return not await serving.ready()


async def _have_received(serving: Serving, workers: int) -> bool:
    """Whether all its processes have taken notice of a signal to stop."""
    return serving.log().count("Stopping: ") == workers


async def _has_accepted(deployment: Deployment, runs: int) -> bool:
    return len(deployment.accepted) >= runs


async def _has_workers(serving: Serving, count: int) -> bool:
    return len(serving.workers()) == count


async def _holds_nothing(deployment: Deployment, pid: int) -> bool:
    rows = await deployment.rows()
    return not any(row.status in UNSETTLED and _pid(row.worker) == pid for row in rows.values())


async def _holds_many(deployment: Deployment, pid: int) -> bool:
    return len(_held_by(pid, await deployment.rows())) >= _MANY


async def _holds_all(deployment: Deployment, survivor: Serving, runs: Collection[UUID]) -> bool:
    """Whether it has claimed each of these runs that is not settled."""
    (process,) = survivor.workers()
    elsewhere = UserRun.worker.not_like(f"%-{process.pid}-%")
    query = (
        select(UserRun.run_id)
        .where(UserRun.run_id.in_(runs), UserRun.status.in_(UNSETTLED), elsewhere)
        .limit(1)
    )
    async with deployment.database.read() as connection:
        return (await connection.execute(query)).first() is None


def _pid(worker: str) -> int:
    """The process of a worker; 0 for a run that a queue holds."""
    return int(worker.split("-")[-2]) if "-" in worker else 0


async def _freeze(deployment: Deployment, serving: Serving, *, inside_a_write: bool) -> None:
    """Stop the process where it is, or is not, in the midst of a transaction."""
    (process,) = serving.workers()
    async with asyncio.timeout(30):
        while True:
            process.suspend()
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - it sets no event
                await asyncio.sleep(0)
            if await _writes(deployment) == inside_a_write:
                return
            process.resume()
            # Long enough to get somewhere on a busy machine, and to another place each time.
            await asyncio.sleep(random.uniform(0.005, 0.05))


async def _writes(deployment: Deployment) -> bool:
    """Whether somebody holds locks for so long that it must be who is frozen."""
    holders = await _lock_holders(deployment)
    for _ in range(20):
        if not holders:
            return False
        await asyncio.sleep(0.01)
        holders &= await _lock_holders(deployment)
    return True


async def _lock_holders(deployment: Deployment) -> set[object]:
    if deployment.database.is_sqlite:
        path = deployment.settings.database_url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return {path}
            connection.execute("ROLLBACK")
            return set()
    async with deployment.database.read() as connection:
        return {tuple(row) for row in await connection.execute(text(_HOLDING_ROWS))}


# Transactions that have locked rows and wait for their client, be it for the rest of a statement
# (which is `active`). RowShareLock is what SELECT ... FOR UPDATE takes.
_HOLDING_ROWS = """
    SELECT pid, state_change FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE datname = current_database() AND mode = 'RowShareLock'
    AND (state = 'idle in transaction' OR wait_event = 'ClientRead')
"""
