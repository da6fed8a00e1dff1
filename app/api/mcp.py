"""`/mcp`: each served crew as a tool of an MCP server, by streamable HTTP.

No process keeps a session, so any process may get any request. What a session is needed for is
cancellation: it names the request that is to be cancelled, and comes in a request of its own. The
run is found by the idempotency key that is made of the session's id and the request's.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import msgspec
from litestar import Response, post
from litestar.datastructures import State
from litestar.datastructures.headers import MutableScopeHeaders
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.lowlevel import server as sdk
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.requests import Request

from app.api.auth import CallerRequest
from app.api.errors import error_text
from app.api.relay import read_message, relayed
from app.runs.callers import Caller
from app.runs.errors import IdempotencyConflict, RunMoved
from app.runs.events import Event
from app.runs.models import UNSETTLED, RunStatus, UserRun
from app.runs.served import ServedCrew
from app.runs.service import RunOptions, RunService

_INSTRUCTIONS = (
    "Each tool runs a crew of agents, which takes seconds to minutes. It tells of its progress, "
    "and its result holds the text of each task."
)
_HEARTBEAT_SECONDS = 60.0

_OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {
        "run_id": {"type": "string", "description": "The run, as /api/runs knows it"},
        "status": {"type": "string"},
        "outputs": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The text of each task, by its name",
        },
        "raw_result": {"type": "string", "description": "The text of the crew as a whole"},
    },
    "required": ["run_id", "status", "outputs", "raw_result"],
}


# The SDK collects warnings while it handles a request, by replacing the process's hook. Requests
# overlap, so that at the end all warnings would go to the list of one that has ended.
sdk.warnings = SimpleNamespace(catch_warnings=lambda record: nullcontext([]))  # type: ignore[assignment, attr-defined]


@post("/mcp", include_in_schema=False)
async def mcp(request: CallerRequest, state: State) -> ASGIApp:
    """Takes one message of a client; its answer, if it has one, is a stream of events."""
    body, message = await read_message(request)
    method = message.get("method")
    if method == "notifications/cancelled":
        await _cancel(request, state.runs, message.get("params"))
        return Response(None, status_code=202).to_asgi_response(None, request)
    answer = relayed(state.mcp, body)
    return _begins_session(answer) if method == "initialize" else answer


@asynccontextmanager
async def open_mcp(runs: RunService) -> AsyncIterator[Any]:
    """The SDK's application behind `/mcp`, for as long as the block lasts."""
    manager = StreamableHTTPSessionManager(_CrewTools(runs).server, stateless=True)
    async with manager.run():
        yield manager.handle_request


class _CrewTools:
    """The tools of the server: one for each crew."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs
        self._crews = {crew.name: crew for crew in runs.crews()}
        self.server: Server[Any, Request] = Server("crew-capture", "0.1.0", _INSTRUCTIONS)
        self.server.list_tools()(self._list)  # type: ignore[no-untyped-call]
        # Inputs are checked as on every way in, with errors that say what would be right.
        self.server.call_tool(validate_input=False)(self._call)

    async def _list(self) -> list[types.Tool]:
        return [_tool(crew) for crew in self._crews.values()]

    async def _call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        context = self.server.request_context
        request = cast("Request", context.request)
        caller: Caller = request.scope["user"]
        session_id = request.headers.get(MCP_SESSION_ID_HEADER)
        key = None if session_id is None else _run_key(session_id, context.request_id)
        try:
            run_id = await self._runs.start(
                name, arguments, caller, RunOptions(idempotency_key=key)
            )
            progress = _Progress(self._crews[name], self.server)
            await progress.tell(f"run {run_id} is accepted")
            watching = self._runs.watch(
                run_id, caller, after_seq=-1, heartbeat_seconds=_HEARTBEAT_SECONDS, tokens=False
            )
            async with aclosing(watching) as events:
                async for event in events:
                    if event is not None:
                        await progress.show(event)
            return _result(await self._runs.get(run_id, caller))
        except IdempotencyConflict:
            return _error("the id of this request was used before in this session")
        except Exception as error:
            return _error(error_text(error))


class _Progress:
    """Tells the client how far a call is: a task counts half when it starts, whole at its end.

    What an earlier attempt at the run has told is not told again.
    """

    def __init__(self, crew: ServedCrew, server: Server[Any, Request]) -> None:
        self._context = server.request_context
        self._total = len(crew.tasks) or None
        self._steps: set[tuple[str, int]] = set()

    async def show(self, event: Event) -> None:
        step = (event.type, event.data.get("index", -1))
        if event.type in ("task.started", "task.finished") and step not in self._steps:
            self._steps.add(step)
            await self.tell(f"{event.data['name']} {event.type.removeprefix('task.')}")

    async def tell(self, message: str) -> None:
        meta = self._context.meta
        if meta is None or meta.progressToken is None:
            return
        await self._context.session.send_progress_notification(
            meta.progressToken,
            len(self._steps) / 2,
            self._total,
            message,
            related_request_id=str(self._context.request_id),
        )


async def _cancel(request: CallerRequest, runs: RunService, params: object) -> None:
    """Cancel the run of a call. As the protocol has it, nobody is told if there is none."""
    session_id = request.headers.get(MCP_SESSION_ID_HEADER)
    if session_id is None or not isinstance(params, dict):
        return
    run_id = await runs.find(_run_key(session_id, params.get("requestId")), request.user)
    if run_id is not None:
        await runs.cancel(run_id, request.user)


def _begins_session(app: ASGIApp) -> ASGIApp:
    """The application, its answer with an id for a session."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableScopeHeaders(message)[MCP_SESSION_ID_HEADER] = uuid4().hex
            await send(message)

        await app(scope, receive, send_with_id)

    return answer


def _run_key(session_id: str, request_id: object) -> str:
    """The idempotency key of the run of a request: a request sent again gets the same run."""
    of_request = msgspec.json.encode([session_id, request_id])
    return f"mcp:{hashlib.sha256(of_request).hexdigest()}"


def _tool(crew: ServedCrew) -> types.Tool:
    return types.Tool(
        name=crew.name,
        description=crew.description,
        inputSchema=crew.input_schema(),
        outputSchema=_OUTPUT_SCHEMA,
    )


def _result(run: UserRun) -> types.CallToolResult:
    if run.status in UNSETTLED:
        raise RunMoved(f"run {run.run_id} is accepted and goes on in another process")
    if run.status != RunStatus.SUCCEEDED:
        return _error(f"run {run.run_id} {run.status}: {run.error_type}: {run.error}")
    raw_result = run.raw_result or ""
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=raw_result)],
        structuredContent={
            "run_id": str(run.run_id),
            "status": run.status,
            "outputs": run.outputs or {},
            "raw_result": raw_result,
        },
    )


def _error(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], isError=True)
