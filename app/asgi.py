"""The one place where the parts meet: settings in, a service out."""

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING
from uuid import uuid4

from litestar import Litestar

from app.access.api_keys import ApiKeys
from app.access.callers import Quota
from app.access.rate_limits import RateLimits
from app.api.a2a.routes import a2a_app, a2a_router
from app.api.amp import amp_router
from app.api.crews import crews_router
from app.api.errors import EXCEPTION_HANDLERS
from app.api.health import live, ready
from app.api.mcp.routes import mcp, open_mcp
from app.api.middleware.auth import Identity
from app.api.middleware.request_limits import Bounds, add_security_headers
from app.api.openapi import ClosedObjects, openapi_config
from app.api.run import run_idea_crew
from app.api.runs import runs_router
from app.crews.options import CrewOptions
from app.crews.registry import Registry, served_crews
from app.db import Database
from app.engine import CrewModel, Engine
from app.engine.llm import OFFLINE, ModelSettings, close_models, create_model
from app.file_limits import model_connections
from app.logs import configure_logging
from app.resources import open_database, open_store
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenExchange
from app.runs.execution.lease_keeper import Recovery
from app.runs.execution.peer_poller import Neighbours
from app.runs.execution.worker import Worker
from app.runs.maintenance.retention import Retention
from app.runs.maintenance.sweeper import Sweeper
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRows
from app.runs.service import RunService
from app.runs.webhooks.outbox import Outbox
from app.runs.webhooks.sender import LEASE_SECONDS, Deliverer
from app.runs.webhooks.url_guard import WebhookTargets
from app.settings import Settings, SettingsError, load_settings
from storage import OutputStore

if TYPE_CHECKING:  # app.engine must be imported before crewai is
    from crewai import BaseLLM

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


def create_app(settings: Settings | None = None, crews: Registry | None = None) -> Litestar:
    """The ASGI application; everything it holds is opened and closed with its lifespan."""
    settings = settings or load_settings()
    configure_logging(settings.log_level, settings.log_format)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with open_service(settings, crews) as service:
            for part in fields(service):
                app.state[part.name] = getattr(service, part.name)
            app.state.needs_key = settings.auth == "keys"
            app.state.a2a = a2a_app(service.runs)
            async with open_mcp(service.runs) as app.state.mcp:
                yield

    return Litestar(
        [run_idea_crew, runs_router, crews_router, amp_router, mcp, a2a_router, live, ready],
        lifespan=[lifespan],
        middleware=[
            Bounds(),
            Identity(
                needs_key=settings.auth == "keys",
                allowed_hosts=settings.host_names,
                quota=_quota(settings),
                is_rate_limited=bool(settings.rates),
            ),
        ],
        exception_handlers=dict(EXCEPTION_HANDLERS),
        before_send=[add_security_headers],
        request_max_body_size=_MAX_BODY_BYTES,
        openapi_config=openapi_config(needs_key=settings.auth == "keys"),
        plugins=[ClosedObjects()],
        logging_config=None,
    )


def _quota(settings: Settings) -> Quota | None:
    """What each caller may have; None: any number."""
    quota = Quota(settings.max_runs_per_caller, settings.runs_per_day, settings.tokens_per_day)
    return None if quota == Quota() else quota


@asynccontextmanager
async def open_service(settings: Settings, crews: Registry | None = None) -> AsyncIterator[Service]:
    """Everything that runs crews, started; drained and closed at the end of the block.

    Raises:
        SettingsError, DatabaseUnavailable, StorageError, CrewBroken: a part can't start; one
            clear line.
    """
    crews = crews or served_crews(settings)
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
        rows = RunRows(
            database,
            events,
            engine.fingerprint,
            worker=name,
            lease_seconds=settings.lease_seconds,
        )
        stack.push_async_callback(rows.aclose)
        queries = RunQueries(database)
        tokens = TokenExchange(database, name)
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
        webhook_targets = await stack.enter_async_context(_webhooks(settings, database))
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
            webhook_targets=webhook_targets,
        )
        rate_limits = RateLimits(database, settings.rates)
        stack.push_async_callback(rate_limits.aclose)
        recovery = Recovery(rows, queries, worker, max_attempts=settings.max_attempts)
        stack.push_async_callback(recovery.aclose)
        neighbours = Neighbours(name, worker, events, queries, tokens)
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
async def _webhooks(settings: Settings, database: Database) -> AsyncIterator[WebhookTargets | None]:
    """Webhooks are sent while the block lasts; where they may go, None if there are none."""
    secret = settings.webhook_secret_bytes
    if secret is None:
        yield None
        return
    targets = WebhookTargets(allow_private=settings.webhook_allow_private)
    outbox = Outbox(database, lease_seconds=LEASE_SECONDS)
    deliverer = Deliverer(outbox, targets, secret=secret)
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


def configured_model(settings: Settings, crews: Registry) -> "BaseLLM":
    """The model of every agent that names none of its own."""
    return _model(settings, crews, CrewOptions())


def models_of_crews(settings: Settings, crews: Registry) -> dict[str, CrewModel]:
    """The models of crews that do not use the deployment's.

    Raises:
        SettingsError: CrewAI does not know such a model, or lacks what it needs.
    """
    models = {}
    for crew in crews:
        options = crew.options
        if options.has_model or options.replace_models:
            try:
                llm = _model(settings, crews, options)
            except (ImportError, ValueError) as error:
                text = " ".join(str(error).split())
                raise SettingsError(
                    f"CREWS_FILE={settings.crews_file}: [{crew.name}] model: {text}"
                ) from error
            models[crew.name] = CrewModel(llm, options.replace_models)
    return models


def _model(settings: Settings, crews: Registry, options: CrewOptions) -> "BaseLLM":
    """The model that `options` name, as far as they do, else the deployment's.

    A model of another provider than the deployment's is not given the deployment's address or key.
    """
    name = options.model or settings.llm_model
    base_url, secret = options.base_url, settings.llm_api_key
    key = os.environ.get(options.api_key_env) if options.api_key_env else None
    if base_url is None and _provider(name) == _provider(settings.llm_model):
        base_url = settings.llm_base_url
        key = key or (secret.get_secret_value() if secret else None)
    return create_model(
        ModelSettings(
            model=name,
            base_url=base_url,
            api_key=key,
            temperature=options.temperature,
            timeout_seconds=settings.llm_timeout_seconds,
            max_concurrency=model_connections(settings.llm_max_concurrency),
        ),
        offline_answers=[crew.offline_answer for crew in crews if crew.offline_answer],
    )


def _provider(model: str) -> str:
    """What stands before the slash; OpenAI, where nothing does."""
    provider, separator, _ = model.partition("/")
    return provider if separator or model == OFFLINE else "openai"


def _worker_name() -> str:
    """One name for each process that ever ran: a restarted one is another worker."""
    return f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid4().hex[:8]}"
