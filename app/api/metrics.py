"""`/metrics` for Prometheus, and the metrics of requests."""

import asyncio
import time
from collections.abc import Collection
from typing import Any, Final

from litestar import MediaType, Response, get
from litestar.datastructures import State
from litestar.di import NamedDependency
from litestar.enums import ScopeType
from litestar.exceptions import HTTPException
from litestar.openapi import ResponseSpec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_responses
from app.api.middleware.auth import FOR_METRICS, CallerRequest, check_host, encoded_hosts
from app.gauges import SharedGauges
from app.telemetry import metrics

_PATH: Final = "/metrics"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED: Final = "unmatched"
"""The route of requests to paths that do not exist."""


async def scrape(gauges: SharedGauges, accept: str) -> tuple[bytes, str]:
    """The metrics of all processes of the machine, and the type of their format."""
    await gauges.refresh()
    return await asyncio.to_thread(metrics.render, accept)


@get(
    _PATH,
    summary="Get the metrics of all processes of the machine",
    description=(
        "In Prometheus' text format, or in OpenMetrics' if `Accept` names it first. "
        "It requires a key of the role `metrics` or `admin`, if the service uses keys."
    ),
    media_type=MediaType.TEXT,
    responses={
        200: ResponseSpec(
            str, description="The metrics", media_type=MediaType.TEXT, generate_examples=False
        ),
        **error_responses({403: "The role of the key may not read metrics"}),
    },
    opt=FOR_METRICS,
)
async def get_metrics(
    request: CallerRequest, gauges: NamedDependency[SharedGauges]
) -> Response[bytes]:
    text, content_type = await scrape(gauges, request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})


class MetricsPort:
    """An application whose requests to one port get metrics, without a key, and nothing else."""

    def __init__(
        self, app: ASGIApp, port: int, state: State, allowed_hosts: Collection[str] | None
    ) -> None:
        self._app = app
        self._port = port
        self._state = state
        self._hosts = encoded_hosts(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server: Any = scope.get("server")
        if scope["type"] == ScopeType.HTTP and server is not None and server[1] == self._port:
            await self._respond(scope, send)
        else:
            await self._app(scope, receive, send)

    async def _respond(self, scope: Any, send: Send) -> None:
        status, body, content_type = 200, b"", "text/plain; charset=utf-8"
        try:
            check_host(scope, self._hosts)
        except HTTPException as error:
            status, body = error.status_code, f"{error.detail}\n".encode()
        else:
            if scope["path"] != _PATH or scope["method"] not in {"GET", "HEAD"}:
                status, body = 404, b"this port has GET /metrics, and nothing else\n"
            else:
                accept = b",".join(v for name, v in scope["headers"] if name == b"accept")
                body, content_type = await scrape(self._state.gauges, accept.decode("latin-1"))
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        # The server leaves the body out in its response to HEAD.
        await send({"type": "http.response.body", "body": body, "more_body": False})


class RequestMetrics:
    """Records each request when its response has ended, or its client has disconnected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), "0"

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        metrics.ACTIVE_REQUESTS.inc()
        try:
            await self._app(scope, receive, send_noting_status)
        finally:
            metrics.ACTIVE_REQUESTS.inc(by=-1)
            method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
            route = scope.get("path_template") or _UNMATCHED
            metrics.REQUEST_DURATION.observe(time.monotonic() - begun, method, str(route), status)
