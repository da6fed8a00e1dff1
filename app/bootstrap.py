"""Assemble a running service from its settings, without HTTP: the composition root."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from app.access.api_keys import ApiKeys
from app.access.rate_limits import RateLimits
from app.crews.registry import Registry, load_crews
from app.db import Database
from app.engine import Engine
from app.engine.llm import close_models
from app.model_setup import configured_model, models_of_crews
from app.resources import open_database, open_store
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.lease_keeper import Recovery
from app.runs.execution.peer_poller import PeerPoller
from app.runs.execution.worker import Worker
from app.runs.maintenance.retention import Retention
from app.runs.maintenance.sweeper import Sweeper
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.service import RunService
from app.runs.webhooks.outbox import Outbox
from app.runs.webhooks.sender import LEASE_SECONDS, WebhookSender
from app.runs.webhooks.url_guard import UrlGuard
from app.settings import Settings
from storage import OutputStore

if TYPE_CHECKING:  # app.engine must be imported before crewai is
    pass

_MAX_BODY_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Service:
    """A running service, without its HTTP side.

    `stop` takes no more runs, waits that many seconds for those under way, hands the others
    back and ends all watching. It may be called again, with less patience.
    """

    runs: RunService
    worker: Worker
    events: EventHub
    stop: Callable[[float], Awaitable[None]]
    store: OutputStore
    database: Database
    api_keys: ApiKeys
    rate_limits: RateLimits


@asynccontextmanager
async def open_service(settings: Settings, crews: Registry | None = None) -> AsyncIterator[Service]:
    """Everything that runs crews, started; drained and closed at the end of the block.

    Raises:
        SettingsError, DatabaseUnavailable, StorageError, CrewBroken: a part can't start; one
            clear line.
    """
    crews = crews or load_crews(settings)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings))
        store = await stack.enter_async_context(open_store(settings, database))
        engine = Engine(
            model=configured_model(settings, crews),
            models_of_crews=models_of_crews(settings, crews),
            mode=settings.engine,
            max_stock_threads=settings.max_runs_in_flight,
        )
        stack.push_async_callback(close_models)
        stack.push_async_callback(engine.aclose)
        await engine.start(list(crews))
        events, name = EventHub(), _worker_name()
        rows = RunRepository(
            database,
            events,
            engine.fingerprint,
            worker=name,
            lease_seconds=settings.lease_seconds,
        )
        stack.push_async_callback(rows.aclose)
        queries = RunQueries(database)
        tokens = TokenRelay(database, name)
        sweeper = Sweeper(
            store,
            queries,
            tokens,
            max_age_seconds=settings.cleanup_max_age_seconds,
            interval_seconds=settings.cleanup_interval_seconds,
            probability=settings.cleanup_probability,
        )
        stack.push_async_callback(sweeper.aclose)
        await stack.enter_async_context(_retention(settings, database))
        url_guard = await stack.enter_async_context(_webhooks(settings, database))
        worker = Worker(
            rows=rows,
            queries=queries,
            store=store,
            engine=engine,
            sweeper=sweeper,
            events=events,
            crews=crews,
            max_in_flight=settings.max_runs_in_flight,
            timeout_seconds=settings.run_timeout_seconds,
        )
        runs = RunService(
            crews=crews,
            engine=engine,
            rows=rows,
            queries=queries,
            worker=worker,
            events=events,
            max_runs=settings.max_runs_in_flight + settings.max_runs_queued,
            url_guard=url_guard,
        )
        rate_limits = RateLimits(database, settings.rates)
        stack.push_async_callback(rate_limits.aclose)
        recovery = Recovery(rows, queries, worker, max_attempts=settings.max_attempts)
        stack.push_async_callback(recovery.aclose)
        neighbours = PeerPoller(name, worker, events, queries, tokens)
        stack.push_async_callback(neighbours.aclose)

        async def stop(seconds: float) -> None:
            runs.accepting = recovery.taking_over = False
            await worker.drain(seconds)
            events.close()

        stack.push_async_callback(stop, settings.shutdown_seconds)
        sweeper.start()
        recovery.start()
        neighbours.start()
        yield Service(runs, worker, events, stop, store, database, ApiKeys(database), rate_limits)


@asynccontextmanager
async def _webhooks(settings: Settings, database: Database) -> AsyncIterator[UrlGuard | None]:
    """Webhooks are sent while the block lasts; where they may go, None if there are none."""
    secret = settings.webhook_secret_bytes
    if secret is None:
        yield None
        return
    targets = UrlGuard(allow_private=settings.webhook_allow_private)
    outbox = Outbox(database, lease_seconds=LEASE_SECONDS)
    deliverer = WebhookSender(outbox, targets, secret=secret)
    deliverer.start()
    try:
        yield targets
    finally:
        await deliverer.aclose()
        await targets.aclose()


@asynccontextmanager
async def _retention(settings: Settings, database: Database) -> AsyncIterator[None]:
    """Old runs are removed while the block lasts, if there is an age at which they are old."""
    if not settings.retention_days:
        yield
        return
    retention = Retention(database, days=settings.retention_days)
    retention.start()
    try:
        yield
    finally:
        await retention.aclose()


def _worker_name() -> str:
    """One name for each process that ever ran: a restarted one is another worker."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid4().hex[:8]}"
