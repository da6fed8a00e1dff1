"""`/mcp`: each available crew as a tool of an MCP server, by streamable HTTP.

No process keeps a session, so any process can handle any request. Only cancellation needs one: a
separate request names the request to cancel. The run is found by its idempotency key, which is made
of the ids of the session and the request.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import uuid4

import msgspec
from litestar import Response, post
from litestar.datastructures.headers import MutableScopeHeaders
from litestar.di import NamedDependency
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.api.dependencies import Runs
from app.api.jsonrpc import forward, read_message
from app.api.mcp.run_keys import run_key
from app.api.middleware.auth import RPC, CallerRequest
from app.api.problems import convert
from app.api.sdk import import_sdk
from app.runs import RunService

if TYPE_CHECKING:
    from app.api.mcp.server import McpServer

MCP_SESSION_ID_HEADER: Final = "mcp-session-id"
"""The protocol's header with the id of a session."""


class _RpcMessage(msgspec.Struct):
    """A request or a notification. The SDK's errors for others name its types in Python."""

    jsonrpc: Literal["2.0"]
    method: str
    id: int | str | msgspec.UnsetType = msgspec.UNSET
    params: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET


class McpApplication:
    """The SDK's application behind `/mcp`; a client's first request starts it."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs
        self._server: McpServer | None = None

    async def get(self) -> Callable[..., Any]:
        """The application, which runs."""
        if self._server is None:
            await import_sdk("app.api.mcp.server")
            from app.api.mcp.server import McpServer  # noqa: PLC0415

            self._server = self._server or McpServer(self._runs)
        return await self._server.application()

    async def aclose(self) -> None:
        """End the application and the requests that it handles."""
        if self._server is not None:
            await self._server.aclose()


@post("/mcp", include_in_schema=False, opt=RPC)
async def mcp(
    request: CallerRequest, runs: Runs, mcp_app: NamedDependency[McpApplication]
) -> ASGIApp:
    """Handle one message of a client; its response, if it has one, is a stream of events."""
    body, message = await read_message(request)
    if not message.keys() & {"result", "error"}:  # a request or a notification, not a response
        convert(message, _RpcMessage, "body")
    method = message.get("method")
    if method == "notifications/cancelled":
        await _cancel(request, runs, message.get("params"))
        return Response(None, status_code=202).to_asgi_response(None, request)
    app = forward(await mcp_app.get(), body)
    return _with_session_id(app) if method == "initialize" else app


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
