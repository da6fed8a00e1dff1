"""The ASGI application: routes, middleware and error handlers around a service."""

from collections.abc import AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import Self

from litestar import Litestar, Router

from app.access.callers import Quota, default_quota
from app.access.sessions import WebSessions
from app.api.a2a.routes import A2aApplication, a2a_router
from app.api.access_log import AccessLog
from app.api.amp.errors import in_dialect_of_path
from app.api.amp.routes import amp_router
from app.api.batches import batches_router
from app.api.crews import crews_router
from app.api.dependencies import DEPENDENCIES
from app.api.errors import EXCEPTION_HANDLERS
from app.api.health import Readiness, live, ready
from app.api.json_request import JsonRequest
from app.api.keys import keys_router
from app.api.markdown import HtmlRenderer
from app.api.mcp.routes import McpApplication, mcp
from app.api.memory import memory_router
from app.api.metrics import MetricsPort, RequestMetrics, get_metrics
from app.api.middleware.allowed_methods import list_allowed_methods
from app.api.middleware.auth import AuthMiddleware
from app.api.middleware.charged_requests import with_charges
from app.api.middleware.cors import with_cors
from app.api.middleware.csrf import CsrfGuard
from app.api.middleware.head import name_head, with_head
from app.api.middleware.open_requests import OpenRequests
from app.api.middleware.released_requests import with_release
from app.api.middleware.request_ids import RequestIds, add_request_id
from app.api.middleware.request_limits import RequestLimits, add_security_headers
from app.api.middleware.request_traces import RequestTraces
from app.api.openapi import ClosedObjects, openapi_config
from app.api.operations import OperationsFeed, operations_router
from app.api.parameters import refuse_unknown_parameters
from app.api.run import run_idea_crew
from app.api.runs import runs_router
from app.api.schedules import schedules_router
from app.api.usage import usage_router
from app.api.workers import workers_router
from app.bootstrap import open_service
from app.crews.registry import Registry
from app.logs import configure_logging
from app.roles import Role
from app.settings import Settings, load_settings
from app.telemetry import metrics
from app.telemetry.tracing import is_configured
from app.web.errors import as_pages
from app.web.rendering import TEMPLATES
from app.web.routes import web_router

_MAX_BODY_BYTES = 1_000_000


def create_app(
    settings: Settings | None = None,
    crews: Registry | None = None,
    *,
    role: Role = Role.ALL,
) -> Litestar:
    """Create the ASGI application; its lifespan opens and closes the service.

    A process of the role EXECUTE has health and metrics, and nothing else.
    """
    settings = settings or load_settings()
    configure_logging(settings.log_level, settings.log_format)
    options = RouteOptions.of(settings, role)
    app = create_routes(options)
    app.state.open_service = partial(open_service, settings, crews, role=role)
    app.state.needs_key = options.needs_key
    app.asgi_handler = with_head(app.asgi_handler)
    if settings.origins:
        app.asgi_handler = with_cors(app.asgi_handler, settings.origins)
    if settings.access_log:
        app.asgi_handler = AccessLog(app.asgi_handler)
    app.asgi_handler = with_release(with_charges(RequestMetrics(app.asgi_handler)))
    if settings.metrics_port:
        port, hosts = settings.metrics_port, settings.host_names
        app.asgi_handler = MetricsPort(app.asgi_handler, port, app.state, hosts)
    return app


@dataclass(frozen=True)
class RouteOptions:
    """The settings of routes and their middleware; handlers have the service in `app.state`."""

    has_api: bool
    has_pages: bool
    is_traced: bool
    needs_key: bool
    is_rate_limited: bool
    quota: Quota | None
    origins: Collection[str]
    host_names: Collection[str] | None

    @classmethod
    def of(cls, settings: Settings, role: Role) -> Self:
        """The options of a process with this role."""
        has_api = role is not Role.EXECUTE
        return cls(
            has_api=has_api,
            has_pages=has_api and settings.pages,
            is_traced=is_configured(),
            needs_key=settings.auth == "keys",
            is_rate_limited=bool(settings.rates),
            quota=default_quota(settings),
            origins=settings.origins,
            host_names=settings.host_names,
        )


def create_routes(options: RouteOptions) -> Litestar:
    """Create an application that opens the service by `app.state.open_service`."""
    exception_handlers = in_dialect_of_path(EXCEPTION_HANDLERS)
    return Litestar(
        [
            *(live, ready, get_metrics),
            *((_rest_api(), amp_router, mcp, a2a_router) if options.has_api else ()),
            *((web_router,) if options.has_pages else ()),
        ],
        lifespan=[_recording, _serving],
        middleware=[
            RequestIds(),
            *([RequestTraces()] if options.is_traced else []),
            RequestLimits(),
            CsrfGuard(options.origins),
            AuthMiddleware(
                needs_key=options.needs_key,
                allowed_hosts=options.host_names,
                quota=options.quota,
                is_rate_limited=options.is_rate_limited,
            ),
        ],
        dependencies=DEPENDENCIES,
        exception_handlers=as_pages(exception_handlers)
        if options.has_pages
        else exception_handlers,
        template_config=TEMPLATES,
        before_send=[add_security_headers, list_allowed_methods, add_request_id, name_head],
        request_max_body_size=_MAX_BODY_BYTES,
        openapi_config=openapi_config(needs_key=options.needs_key),
        plugins=[ClosedObjects()],
        request_class=JsonRequest,
        logging_config=None,
    )


@asynccontextmanager
async def _serving(app: Litestar) -> AsyncIterator[None]:
    async with app.state.open_service() as service:
        for part in fields(service):
            app.state[part.name] = getattr(service, part.name)
        app.state.web_sessions = WebSessions(service.database, service.api_keys)
        open_requests = app.state.open_requests = OpenRequests(service.api_keys)
        background = [*service.background, open_requests]
        app.state.readiness = Readiness(
            service.runs, service.database, service.store, background, queue=service.queue
        )
        app.state.operations = OperationsFeed(service.sampler, app.state.readiness)
        app.state.a2a_app = A2aApplication(service.runs)
        async with (
            aclosing(open_requests),
            HtmlRenderer() as app.state.renderer,
            aclosing(McpApplication(service.runs)) as app.state.mcp_app,
        ):
            if app.state.needs_key:
                open_requests.start()
            yield


@asynccontextmanager
async def _recording(app: Litestar) -> AsyncIterator[None]:
    with metrics.recording():
        yield


def _rest_api() -> Router:
    """The routes below `/api`."""
    return Router(
        "/",
        route_handlers=[
            run_idea_crew,
            runs_router,
            batches_router,
            schedules_router,
            crews_router,
            usage_router,
            memory_router,
            keys_router,
            operations_router,
            workers_router,
        ],
        before_request=refuse_unknown_parameters,
    )
