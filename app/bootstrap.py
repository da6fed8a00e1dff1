"""Assemble a running service from its settings, without HTTP: the composition root."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from app.access.api_keys import ApiKeys
from app.access.callers import default_quota
from app.access.rate_limits import RateLimits
from app.crews.registry import Registry, load_crews
from app.db import Database
from app.engine import NoCrews
from app.gauges import ProcessGauges, SharedGauges
from app.logs import configure_logging, set_trace_ids
from app.operations import OperationsSampler
from app.prices import Prices, read_prices, unpriced_models
from app.resources import open_database, open_queue, open_store
from app.roles import Role
from app.runs.background import PeriodicService
from app.runs.batches import Batches
from app.runs.crew_directory import CrewDirectory
from app.runs.crew_info import CrewInfo, crew_info
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.consumer import QueueConsumer
from app.runs.execution.crew_limits import CrewLimits
from app.runs.execution.dispatch import (
    DatabaseDispatcher,
    Dispatcher,
    LocalDispatcher,
    QueueDispatcher,
)
from app.runs.execution.isolation import START_FAILED, Isolation
from app.runs.execution.lease_keeper import LeaseKeeper, StalledRunDispatcher, suspect_after
from app.runs.execution.live_updates import LiveUpdates
from app.runs.execution.model_limits import ModelLimits
from app.runs.execution.peer_poller import PeerPoller
from app.runs.execution.poller import QueuePoller
from app.runs.execution.presence import Presence
from app.runs.execution.spending import Accounts
from app.runs.execution.worker import Worker
from app.runs.maintenance.retention import Retention
from app.runs.maintenance.sweeper import Sweeper
from app.runs.memories import Memories, MemoryRetention
from app.runs.persistence.batch_queries import BatchQueries
from app.runs.persistence.crew_slots import CrewSlots
from app.runs.persistence.published_runs import PublishedRuns
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.persistence.workers import WorkerRepository
from app.runs.queue.base import RunQueue
from app.runs.records import QUEUE, DispatchedRun, StalledRun
from app.runs.secrets import SecretVault
from app.runs.service import RunService
from app.runs.webhooks.outbox import Outbox
from app.schedules import ScheduleService
from app.schedules.callers import ScheduleCallers
from app.schedules.dispatcher import ScheduleDispatcher
from app.schedules.repository import ScheduleRepository
from app.settings import Settings
from app.telemetry import metrics
from app.telemetry.tracing import current_trace_id, open_tracing
from app.version import VERSION
from storage import OutputStore

if TYPE_CHECKING:
    from app.engine import Engine
    from app.runs.webhooks.url_guard import UrlGuard
    from app.telemetry.sdk import Tracing

logger = logging.getLogger("crew_capture.serve")


class Stop(Protocol):
    """The stop of a service."""

    def __call__(self, seconds: float, drain_seconds: float = 0.0) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, without its HTTP side.

    `stop` accepts no more runs, waits that many seconds for runs that execute, releases the others
    to other workers and ends all subscriptions. You may call it again, with a shorter wait.
    Subscriptions remain open for at least `drain_seconds`, its second argument.

    `drain` accepts and claims no more runs, and waits until those of this process have ended.
    `presence` says when an operator requests it.
    """

    runs: RunService
    batches: Batches
    memories: Memories
    schedules: ScheduleService
    worker: Worker
    events: EventHub
    stop: Stop
    engine: "Engine | NoCrews"
    store: OutputStore
    database: Database
    api_keys: ApiKeys
    rate_limits: RateLimits
    gauges: SharedGauges
    sampler: OperationsSampler
    sweeper: Sweeper
    background: Sequence[PeriodicService]
    tracing: "Tracing | None"
    presence: Presence
    drain: Callable[[], Awaitable[None]]
    queue: RunQueue | None


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a service ends: its stop, and its drain."""

    runs: RunService
    worker: Worker
    dispatcher: Dispatcher
    isolation: Isolation
    claiming: Sequence[PeriodicService]
    presence: Presence
    events: EventHub

    async def drain(self) -> None:
        await self._accept_no_more()
        await asyncio.gather(self.worker.wait_until_idle(), self.isolation.wait_until_idle())

    async def stop(self, seconds: float, drain_seconds: float = 0.0) -> None:
        await self._accept_no_more()
        # Submissions that were admitted before are dispatched meanwhile.
        await asyncio.sleep(drain_seconds)
        remaining = max(seconds - drain_seconds, 0.0)
        await asyncio.gather(self.worker.drain(remaining), self.isolation.drain(remaining))
        self.events.close()

    async def _accept_no_more(self) -> None:
        self.runs.accepting = False
        self.presence.is_draining = True
        self.presence.wake()
        for periodic in self.claiming:
            await periodic.aclose()
        await self.dispatcher.receive_no_more()


@asynccontextmanager
async def open_service(
    settings: Settings,
    crews: Registry | None = None,
    *,
    role: Role = Role.ALL,
    is_one_shot: bool = False,
    name: str | None = None,
) -> AsyncIterator[Service]:
    """Start everything that accepts and executes runs; drain and close it at the end of the block.

    A process of the role ACCEPT executes none, does not import CrewAI, and knows the crews of all
    workers from the database. One of the role EXECUTE also claims the runs that those accept.

    A one-shot command executes its own runs only: it claims no others, sends no webhooks and
    removes no old runs. `name` is the worker's name; by default it is new.

    Raises:
        SettingsError, DatabaseUnavailable, StorageError, CrewBroken: a part can't start; the
            message is one line.
    """
    executes = role is not Role.ACCEPT
    crews = (crews or load_crews(settings)) if executes else Registry([])
    async with AsyncExitStack() as stack:
        events, name = EventHub(), name or _worker_name()
        tracing = _open_tracing(stack, name)
        database = await stack.enter_async_context(open_database(settings))
        store = await stack.enter_async_context(
            open_store(settings, database, is_one_shot=is_one_shot)
        )
        # A one-shot command executes its runs itself.
        queue = await stack.enter_async_context(
            nullcontext() if is_one_shot else open_queue(settings, database)
        )
        accounts = await stack.enter_async_context(
            aclosing(Accounts(database, name, read_prices(settings.prices_file)))
        )
        queries, workers = RunQueries(database), WorkerRepository(database)
        engine, knowledge = await _start_crews(stack, settings, crews, workers, role)
        if executes and not is_one_shot:  # a command checks the crew that it runs
            _warn_of_models(knowledge.crews.values(), engine, accounts.prices)
        rows = RunRepository(
            database,
            events,
            knowledge.fingerprint,
            worker=name if executes else "",
            # Without a queue, any worker may claim what a process accepts that executes nothing.
            lease_seconds=settings.lease_seconds if executes or queue is not None else 0.0,
            holder=QUEUE if queue is not None else None,
        )
        stack.push_async_callback(rows.aclose)
        tokens = TokenRelay(database, name)
        sweeper = Sweeper(
            store,
            queries,
            tokens,
            max_age_seconds=settings.cleanup_max_age_seconds,
            interval_seconds=settings.cleanup_interval_seconds,
            probability=settings.cleanup_probability,
        )
        memories = await stack.enter_async_context(aclosing(Memories(database)))
        worker = Worker(
            rows=rows,
            queries=queries,
            store=store,
            engine=engine,
            sweeper=sweeper,
            events=events,
            crews=crews,
            accounts=accounts,
            max_in_flight=settings.max_runs_in_flight,
            timeout_seconds=settings.run_timeout_seconds,
            keep_messages=settings.keep_messages,
            memories=memories,
            memory_ownership=settings.memory,
            tracing=tracing,
            model_limits=_model_limits(stack, settings, database),
            vault=SecretVault(
                settings.secrets_keys, is_shared=bool(settings.queue_url) or not executes
            ),
            crew_limits=_crew_limits(settings, database, crews, name),
        )
        lease_keeper = LeaseKeeper(database, rows, worker, lease_seconds=settings.lease_seconds)
        isolation = Isolation(partial(execute_isolated, settings), database, queries, worker)
        stalled_runs = StalledRunDispatcher(
            queries,
            worker,
            isolation,
            max_attempts=settings.max_attempts,
            is_shared=queue is not None,
        )
        gauges = SharedGauges(queries, store)
        stack.push_async_callback(gauges.aclose)
        sampler = OperationsSampler(gauges, queries, workers, accounts.totals)
        background: list[PeriodicService] = [
            # Closed last: it has the final numbers.
            ProcessGauges(worker, events, store, queue),
            sweeper,
            lease_keeper,
            *([worker.crew_limits] if worker.crew_limits is not None else []),
            accounts.totals,
            peer_poller := PeerPoller(name, database.clock, worker, events, queries, tokens),
        ]
        presence = Presence(
            workers, worker, knowledge.crews, name=name, lease_seconds=settings.lease_seconds
        )
        await _start_live_updates(queue, rows, worker, events, peer_poller)
        dispatcher = _dispatcher(settings, database, queries, worker, queue)
        claiming: list[PeriodicService] = [stalled_runs] if executes else []
        if role is Role.EXECUTE and queue is None:
            claiming.append(QueuePoller(queries, worker))
        background += [
            *(part for part in (dispatcher, knowledge) if isinstance(part, PeriodicService)),
            *([] if is_one_shot else _retention(settings, database, memories)),
        ]
        url_guard = None
        if not is_one_shot:
            url_guard = _open_webhooks(stack, settings, database, background)
        runs = RunService(
            crews=knowledge.crews,
            check_state=knowledge.check_state,
            rows=rows,
            queries=queries,
            workers=workers,
            worker=worker,
            dispatcher=dispatcher,
            events=events,
            accounts=accounts,
            max_runs=settings.max_runs_in_flight + settings.max_runs_queued,
            url_guard=url_guard,
            tracing=tracing,
        )
        api_keys = ApiKeys(database)
        schedules, due = _schedules(settings, database, runs, api_keys, knowledge.crews)
        if not is_one_shot:
            background += [
                *claiming,
                # A process that only executes runs has no API that reads the samples.
                *([] if role is Role.EXECUTE else [sampler]),
                due,
                *([presence] if executes else []),
            ]
        rate_limits = RateLimits(database, settings.rates)
        stack.push_async_callback(rate_limits.aclose)

        ending = _Ending(runs, worker, dispatcher, isolation, claiming, presence, events)
        metrics.prepare_crews(worker.crews)
        for periodic in background:
            stack.push_async_callback(periodic.aclose)
            periodic.start()
        # Last, so that it happens first: leases are renewed while runs are waited for.
        stack.push_async_callback(ending.stop, settings.shutdown_seconds)
        yield Service(
            runs,
            Batches(runs, BatchQueries(database)),
            memories,
            schedules,
            worker,
            events,
            ending.stop,
            engine,
            store,
            database,
            api_keys,
            rate_limits,
            gauges,
            sampler,
            sweeper,
            background,
            tracing,
            presence,
            ending.drain,
            queue,
        )


def _schedules(
    settings: Settings,
    database: Database,
    runs: RunService,
    api_keys: ApiKeys,
    crews: Collection[str],
) -> tuple[ScheduleService, ScheduleDispatcher]:
    """The service of schedules, and the part that submits their runs."""
    rows = ScheduleRepository(database)
    callers = ScheduleCallers(api_keys, default_quota(settings))
    return (
        ScheduleService(database.clock, runs, rows, callers),
        ScheduleDispatcher(database.clock, runs, rows, callers, crews),
    )


def _crew_limits(
    settings: Settings, database: Database, crews: Registry, name: str
) -> CrewLimits | None:
    """The limits of crews over all processes, if any crew has one."""
    limits = {c.name: limit for c in crews if (limit := c.options.max_runs_in_flight)}
    if not limits:
        return None
    lease = settings.lease_seconds
    return CrewLimits(CrewSlots(database, limits, worker=name, lease_seconds=lease))


def _model_limits(
    stack: AsyncExitStack, settings: Settings, database: Database
) -> ModelLimits | None:
    """The shared limits of models until the end of the stack, if any are configured."""
    limits = (settings.llm_requests_per_minute, settings.llm_tokens_per_minute)
    if limits == (None, None):
        return None
    model_limits = ModelLimits(database, *limits)
    stack.push_async_callback(model_limits.aclose)
    return model_limits


async def _start_live_updates(
    queue: RunQueue | None,
    rows: RunRepository,
    worker: Worker,
    events: EventHub,
    poller: PeerPoller,
) -> None:
    if queue is not None:
        await LiveUpdates(queue, rows, worker, events, poller).start()


def _open_webhooks(
    stack: AsyncExitStack,
    settings: Settings,
    database: Database,
    background: list[PeriodicService],
) -> "UrlGuard | None":
    """Add the sender of webhooks, if they are configured; the guard of their URLs."""
    secret = settings.webhook_secret_bytes
    if secret is None:
        return None
    # Their HTTP client needs megabytes.
    from app.runs.webhooks.sender import LEASE_SECONDS, WebhookSender  # noqa: PLC0415
    from app.runs.webhooks.url_guard import UrlGuard  # noqa: PLC0415

    url_guard = UrlGuard(allow_private=settings.webhook_allow_private)
    stack.push_async_callback(url_guard.aclose)
    outbox = Outbox(database, lease_seconds=LEASE_SECONDS)
    background.append(WebhookSender(database.clock, outbox, url_guard, secret=secret))
    return url_guard


def _dispatcher(
    settings: Settings,
    database: Database,
    queries: RunQueries,
    worker: Worker,
    queue: RunQueue | None,
) -> LocalDispatcher | DatabaseDispatcher | QueueDispatcher:
    """The dispatcher of a process whose worker has crews, or none."""
    if queue is None:
        return LocalDispatcher(worker) if worker.crews else DatabaseDispatcher(queries)
    published = PublishedRuns(
        database,
        lease_seconds=settings.lease_seconds,
        max_failed_attempts=suspect_after(settings.max_attempts),
    )
    consumer = QueueConsumer(queue, worker) if worker.crews else None
    return QueueDispatcher(queue, published, consumer)


class _LocalCrews:
    """The crews that a process executes itself, as it must know them to accept runs."""

    def __init__(self, crews: Registry, engine: "Engine") -> None:
        self.crews = {crew.name: crew_info(crew, engine.describe(crew.name)) for crew in crews}
        self.fingerprint = engine.fingerprint
        self.check_state = engine.check_inputs


async def _start_crews(
    stack: AsyncExitStack,
    settings: Settings,
    crews: Registry,
    workers: WorkerRepository,
    role: Role,
) -> "tuple[Engine | NoCrews, _LocalCrews | CrewDirectory]":
    """The engine, and what the process knows of crews. Raises CrewBroken, DatabaseUnavailable."""
    if role is Role.ACCEPT:
        directory = CrewDirectory(workers)
        await directory.run_once()
        return NoCrews(), directory
    engine = await _start_engine(stack, settings, crews)
    return engine, _LocalCrews(crews, engine)


async def _start_engine(stack: AsyncExitStack, settings: Settings, crews: Registry) -> "Engine":
    """The engine with its crews, until the end of the stack. Raises CrewBroken."""
    from app.engine import Engine  # noqa: PLC0415 - these import CrewAI
    from app.engine.llm import close_models  # noqa: PLC0415
    from app.model_setup import (  # noqa: PLC0415
        configured_embedder,
        configured_model,
        models_of_crews,
    )

    engine = Engine(
        model=configured_model(settings, crews),
        models_of_crews=models_of_crews(settings, crews),
        mode=settings.engine,
        max_stock_threads=settings.max_runs_in_flight,
        max_output_chars=settings.max_output_chars,
        max_abandoned_threads=settings.max_abandoned_threads,
        embedder=configured_embedder(settings),
        max_mcp_connections=settings.max_mcp_connections,
        mcp_headers={crew.name: crew.options.mcp_headers for crew in crews},
    )
    stack.push_async_callback(close_models)
    stack.push_async_callback(engine.aclose)
    await engine.start(list(crews))
    return engine


def _retention(settings: Settings, database: Database, memories: Memories) -> list[PeriodicService]:
    """The services that delete old runs and unused memories, as far as they are configured."""
    services: list[PeriodicService] = []
    if settings.retention_days:
        services.append(Retention(database, days=settings.retention_days))
    if settings.memory_retention_days:
        services.append(MemoryRetention(memories, days=settings.memory_retention_days))
    return services


def _open_tracing(stack: AsyncExitStack, worker: str) -> "Tracing | None":
    """Traces, if they are configured, until the end of the stack; log lines have their ids."""
    tracing = open_tracing(VERSION, worker)
    if tracing is not None:
        stack.push_async_callback(tracing.aclose)
        set_trace_ids(current_trace_id)
        stack.callback(set_trace_ids, None)
    return tracing


def execute_isolated(settings: Settings, name: str, runs: Sequence[StalledRun]) -> None:
    """Execute runs to their ends, as a worker of this name: the life of an isolated process.

    The crews are those of the settings; others than those of the runs are not prepared. Exits with
    START_FAILED if the service can't start.
    """
    configure_logging(settings.log_level, settings.log_format)
    needed = {run.crew for run in runs}

    async def execute() -> None:
        crews = Registry(crew for crew in load_crews(settings) if crew.name in needed)
        with metrics.recording():
            async with open_service(settings, crews, is_one_shot=True, name=name) as service:
                for run in runs:
                    service.worker.dispatch(DispatchedRun.of(run))
                for run in runs:
                    await service.worker.wait(run.run_id)
                if service.tracing is not None:
                    await service.tracing.aclose()
        os._exit(0)  # a tool's thread can't be stopped, and Python would wait for it

    try:
        asyncio.run(execute())
    except Exception:
        logger.exception("A process of isolated runs failed")
        sys.exit(START_FAILED)


def _warn_of_models(crews: Iterable[CrewInfo], engine: "Engine | NoCrews", prices: Prices) -> None:
    """Log the models of crews that can't be called, or have no price."""
    from app.model_setup import unusable_models  # noqa: PLC0415 - it imports CrewAI

    for crew in crews:
        for problem in unusable_models(crew.name, engine.models(crew.name)):
            logger.warning("%s", problem)
        for model in unpriced_models(prices, crew.models):
            logger.warning("PRICES_FILE has no price for %s of crew %s", model, crew.name)


def _worker_name() -> str:
    """A name unique to this process: after a restart it is another worker."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid4().hex[:8]}"
