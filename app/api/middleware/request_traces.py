"""Traces of requests: the context that a client sends, and the span of a submission."""

from typing import Final

from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.telemetry.tracing import RequestTrace, TraceHeaders, current_request, trace_headers

_METHOD: Final = "POST"
# The first segments of paths; all others are REST.
_PROTOCOLS: Final = {"mcp": "mcp", "a2a": "a2a", "crews": "amp"}


class RequestTraces(ASGIMiddleware):
    """Notes each request that may submit runs, and ends its span with the response.

    The span begins with the first run. The server handles each request in a task of its own, so the
    context needs no reset.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        if scope.get("method") != _METHOD:
            await next_app(scope, receive, send)
            return
        route = scope["path_template"]
        protocol = _PROTOCOLS.get(route.split("/")[1], "rest")
        request = RequestTrace(_METHOD, route, protocol, _context(scope))
        current_request.set(request)
        status = 0

        async def send_noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await next_app(scope, receive, send_noting_status)
        finally:
            if request.end is not None:
                request.end(status)


def _context(scope: Scope) -> TraceHeaders | None:
    found: dict[bytes, list[str]] = {b"traceparent": [], b"tracestate": []}
    for name, value in scope["headers"]:
        if name in found:
            found[name].append(value.decode("latin-1"))
    traceparents = found[b"traceparent"]
    if len(traceparents) != 1:
        return None
    return trace_headers(traceparents[0], ",".join(found[b"tracestate"]))
