"""`/mcp`: each available crew as a tool of an MCP server, by streamable HTTP.

No process keeps a session, so any process can handle any request. Only cancellation needs one: a
separate request names the request to cancel. The run is found by its idempotency key, which is made
of the ids of the session and the request.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal
from uuid import uuid4

import msgspec
from litestar import Response, post
from litestar.datastructures.headers import MutableScopeHeaders
from litestar.di import NamedDependency
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from mcp.server.lowlevel import server as sdk
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from app.api.dependencies import Runs
from app.api.jsonrpc import forward, read_message
from app.api.mcp.handlers import CrewTools, run_key
from app.api.middleware.auth import RPC, CallerRequest
from app.api.problems import convert
from app.runs import RunService

# The SDK collects warnings while it handles a request, by replacing the process's hook. Requests
# overlap, so that all later warnings would end up in the list of a finished request.
sdk.warnings = SimpleNamespace(catch_warnings=lambda record: nullcontext([]))  # type: ignore[assignment, attr-defined]


class _RpcMessage(msgspec.Struct):
    """A request or a notification. The SDK's errors for others name its types in Python."""

    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


@post("/mcp", include_in_schema=False, opt=RPC)
async def mcp(
    request: CallerRequest, runs: Runs, mcp_app: NamedDependency[Callable[..., Any]]
) -> ASGIApp:
    """Handle one message of a client; its response, if it has one, is a stream of events."""
    body, message = await read_message(request)
    if not message.keys() & {"result", "error"}:  # a request or a notification, not a response
        convert(message, _RpcMessage, "body")
    method = message.get("method")
    if method == "notifications/cancelled":
        await _cancel(request, runs, message.get("params"))
        return Response(None, status_code=202).to_asgi_response(None, request)
    app = forward(mcp_app, body)
    return _with_session_id(app) if method == "initialize" else app


@asynccontextmanager
async def open_mcp(runs: RunService) -> AsyncIterator[Any]:
    """The SDK's application behind `/mcp`, for as long as the block lasts."""
    manager = StreamableHTTPSessionManager(CrewTools(runs).server, stateless=True)
    async with manager.run():
        yield manager.handle_request


async def _cancel(request: CallerRequest, runs: RunService, params: object) -> None:
    """Cancel the run of a call. If there is none, the protocol expects no error."""
    session_id = request.headers.get(MCP_SESSION_ID_HEADER)
    if session_id is None or not isinstance(params, dict):
        return
    run_id = await runs.find(run_key(session_id, params.get("requestId")), request.user)
    if run_id is not None:
        await runs.cancel(run_id, request.user)


def _with_session_id(app: ASGIApp) -> ASGIApp:
    """The application; its response contains the id of a new session."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders(message)[MCP_SESSION_ID_HEADER] = uuid4().hex
            await send(message)

        await app(scope, receive, send_with_id)

    return respond
