"""The tools of the MCP server: one for each crew, and one for the review by a human."""

from contextlib import aclosing
from typing import Any, cast
from uuid import UUID

import msgspec
from mcp import types
from mcp.server.lowlevel import Server
from mcp.server.streamable_http import MCP_SESSION_ID_HEADER
from starlette.requests import Request

from app.access.callers import Caller
from app.api.budget_fields import budget_in
from app.api.errors import accepted, error_text
from app.api.mcp.run_keys import run_key
from app.api.problems import convert
from app.budgets import Budget
from app.pacer import inherited, turn
from app.runs import (
    CrewInfo,
    Event,
    HumanInput,
    IdempotencyConflict,
    ReviewDecision,
    Run,
    RunMoved,
    RunOptions,
    RunService,
    RunStatus,
)
from app.telemetry.tracing import current_request, trace_headers
from app.version import VERSION

_INSTRUCTIONS = (
    "Each tool runs a crew of agents, which lasts seconds to minutes. It reports its progress, "
    "and its result contains the text of each task."
)

_OUTPUT_SCHEMA = {
    "type": "object",
    "properties": {
        "run_id": {"type": "string", "description": "The run's id in /api/runs"},
        "status": {"type": "string", "enum": [RunStatus.SUCCEEDED, RunStatus.AWAITING_HUMAN]},
        "outputs": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "The text of each task, by its name",
        },
        "raw_result": {"type": "string", "description": "The result of the crew"},
        "awaiting": {
            "type": "object",
            "properties": {"task": {"type": "string"}, "output": {"type": "string"}},
            "required": ["task", "output"],
            "description": "The output that a human must review before the run continues",
        },
    },
    "required": ["run_id", "status", "outputs", "raw_result"],
}

# The names of crews have no capital letters.
_RESUME_RUN = types.Tool(
    name="resumeRun",
    description=(
        "Sends a human's review of an output to the run that waits for it. If it is approved, the "
        "run continues; otherwise the task is executed again. The result is like a crew's."
    ),
    inputSchema={
        "type": "object",
        "properties": {
            "run_id": {"type": "string", "format": "uuid"},
            "approve": {"type": "boolean", "description": "Whether the output is good as it is"},
            "feedback": {
                "type": "string",
                "description": "The changes to make; if approved, context for the next tasks",
            },
            "task": {
                "type": "string",
                "description": "The reviewed task; refused if the run waits for the review of "
                "another. Without it, the task that the run waits for",
            },
        },
        "required": ["run_id", "approve"],
        "additionalProperties": False,
    },
    outputSchema=_OUTPUT_SCHEMA,
)


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    """The arguments of `resumeRun`."""

    run_id: UUID
    approve: bool
    feedback: str = ""
    task: str | None = None


class CrewTools:
    """The tools of `server`."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs
        self.server: Server[Any, Request] = Server("crew-capture", VERSION, _INSTRUCTIONS)
        self.server.list_tools()(self._list)  # type: ignore[no-untyped-call]
        # `RunService` checks inputs, as for all entry points, with errors that state the fix.
        self.server.call_tool(validate_input=False)(self._call)

    async def _list(self) -> list[types.Tool]:
        crews = self._runs.crews()
        resume = [_RESUME_RUN] if any(crew.awaits_human for crew in crews) else []
        return [*map(_tool, crews), *resume]

    async def _call(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        """Call a tool, in a task of the SDK that handles one request."""
        await turn()
        return await inherited(self._call_tool, name, arguments)

    async def _call_tool(self, name: str, arguments: dict[str, Any]) -> types.CallToolResult:
        request = cast("Request", self.server.request_context.request)
        caller: Caller = request.scope["user"]
        try:
            if name == _RESUME_RUN.name:
                run = await self._resume(arguments, caller)
            else:
                run = await self._submit(name, arguments, request, caller)
            with accepted(run.run_id):
                return await self._follow(run, caller)
        except IdempotencyConflict:
            return _error("the id of this request was used before in this session")
        except Exception as error:
            return _error(error_text(error))

    async def _submit(
        self, name: str, inputs: dict[str, Any], request: Request, caller: Caller
    ) -> Run:
        _use_context_of(self.server.request_context.meta)
        session_id = request.headers.get(MCP_SESSION_ID_HEADER)
        request_id = self.server.request_context.request_id
        key = None if session_id is None else run_key(session_id, request_id)
        meta = self.server.request_context.meta
        budget = budget_in(meta.model_extra or {}) if meta is not None else Budget()
        options = RunOptions(idempotency_key=key, budget=budget)
        return await self._runs.submit(name, inputs, caller, options)

    async def _resume(self, arguments: dict[str, Any], caller: Caller) -> Run:
        given = convert(arguments, _Answer, "arguments")
        decision = ReviewDecision(given.run_id, given.task, given.feedback, given.approve)
        await self._runs.resume(decision, caller)
        return await self._runs.get(given.run_id, caller)

    async def _follow(self, run: Run, caller: Caller) -> types.CallToolResult:
        """Report the run's progress; returns its result once it ends or waits for a human."""
        progress = _Progress(self._runs.crew(run.crew), self.server)
        await progress.report(f"run {run.run_id} is accepted")
        async with aclosing(self._runs.follow(run.run_id, caller)) as events:
            async for event in events:
                await progress.report_event(event)
        return _result(await self._runs.get(run.run_id, caller))


def _use_context_of(meta: types.RequestParams.Meta | None) -> None:
    """Continue the trace that `_meta` names: a call's own context precedes its HTTP request's."""
    request, fields = current_request.get(), (meta and meta.model_extra) or {}
    given = trace_headers(fields.get("traceparent"), fields.get("tracestate"))
    if request is not None and given is not None:
        request.given = given


class _Progress:
    """Progress notifications of a call: a task counts half when it starts, one when it ends.

    A later attempt at the run does not repeat the notifications of an earlier one.
    """

    def __init__(self, crew: CrewInfo, server: Server[Any, Request]) -> None:
        self._context = server.request_context
        self._total = len(crew.tasks) or None
        self._steps: set[tuple[str, int]] = set()

    async def report_event(self, event: Event) -> None:
        step = (event.type, event.data.get("index", -1))
        if event.type in ("task.started", "task.finished") and step not in self._steps:
            self._steps.add(step)
            await self.report(f"{event.data['name']} {event.type.removeprefix('task.')}")

    async def report(self, message: str) -> None:
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


def _tool(crew: CrewInfo) -> types.Tool:
    return types.Tool(
        name=crew.name,
        description=crew.description,
        inputSchema=crew.input_schema(),
        outputSchema=_OUTPUT_SCHEMA,
    )


def _result(run: Run) -> types.CallToolResult:
    if (human := run.awaiting) is not None:
        awaiting = {"task": human.task, "output": human.output}
        return _success(run, _review_request(run, human), {"awaiting": awaiting})
    if not run.is_settled:
        raise RunMoved(run.run_id)
    if run.status != RunStatus.SUCCEEDED:
        return _error(f"run {run.run_id} {run.status}: {run.error_type}: {run.error}")
    return _success(run, run.raw_result or "", {})


def _review_request(run: Run, human: HumanInput) -> str:
    return (
        f"Run {run.run_id} waits: {human.task} is done, and a human must review its output. "
        f"Ask the user, then answer with the tool {_RESUME_RUN.name}, or by POST "
        f"/api/runs/{run.run_id}/resume. The output of {human.task}:\n\n{human.output}"
    )


def _success(run: Run, text: str, more: dict[str, Any]) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=text)],
        structuredContent={
            "run_id": str(run.run_id),
            "status": run.status,
            "outputs": run.outputs or {},
            "raw_result": run.raw_result or "",
            **more,
        },
    )


def _error(text: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], isError=True)
