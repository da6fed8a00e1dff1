"""`/crews/NAME`: the API of a crew that CrewAI's hosted platform deploys, for its clients.

Status bodies speak both dialects: `status` as the platform documents it, and `state` as older
clients compare it.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, Router, get, post
from litestar.datastructures import State
from litestar.params import FromPath, JSONBody

from app.api.errors import AmpError, amp_responses
from app.api.middleware.auth import CallerRequest
from app.runs import (
    InvalidInput,
    MissingInputs,
    ReviewDecision,
    Run,
    RunOptions,
    RunService,
    RunStatus,
    UnknownRun,
    Webhook,
    WebhookKind,
)


class Bearer(msgspec.Struct, tag_field="strategy", tag="bearer"):
    token: str


class Basic(msgspec.Struct, tag_field="strategy", tag="basic"):
    username: str
    password: str


class HumanInputWebhook(msgspec.Struct):
    """Who is told when a run waits for a human, and what it wants to be shown for it."""

    url: str
    authentication: Bearer | Basic | None = None


def _as_the_platform_does(field: str) -> str | None:
    """Its fields about webhooks are in camel case, those about executions are not."""
    if "webhook" not in field:
        return None
    first, *rest = field.split("_")
    return first + "".join(map(str.title, rest))


class WebhookUrls(msgspec.Struct, rename=_as_the_platform_does):
    """Who is told of each finished task, each step of an agent, the end, and of waiting."""

    task_webhook_url: str | None = None
    step_webhook_url: str | None = None
    crew_webhook_url: str | None = None
    human_input_webhook: HumanInputWebhook | None = None


class Kickoff(WebhookUrls, rename=_as_the_platform_does):
    """A run to start; `meta` comes back with each webhook."""

    inputs: dict[str, Any] = {}
    meta: dict[str, Any] | None = None


class Resume(WebhookUrls, rename=_as_the_platform_does, kw_only=True):
    """What a human says of a task's output."""

    execution_id: UUID
    task_id: str
    human_feedback: str
    is_approve: bool


class ResumeAnswer(msgspec.Struct):
    """The task is done again if it was not approved of."""

    status: Literal["resumed", "retrying"]
    message: str


class KickoffAnswer(msgspec.Struct):
    kickoff_id: UUID


class InputsAnswer(msgspec.Struct):
    """The inputs that the crew takes, by name."""

    inputs: list[str]


class Progress(msgspec.Struct):
    completed_tasks: int
    total_tasks: int


class RunningStatus(msgspec.Struct):
    """A run that is not settled."""

    status: Literal["running"]
    state: Literal["PENDING", "STARTED"]
    current_task: str | None
    progress: Progress


class Awaited(msgspec.Struct):
    """What a human is to look at."""

    task_id: str
    output: str


class AwaitingStatus(msgspec.Struct):
    """A run that waits for a human; `resume` lets it go on."""

    status: Literal["running"]
    state: Literal["PENDING HUMAN INPUT"]
    current_task: str
    progress: Progress
    awaiting_human: Awaited


class TaskResult(msgspec.Struct):
    task_id: str
    output: str
    agent: str
    execution_time: float | None


class CrewResult(msgspec.Struct):
    output: str
    tasks: list[TaskResult]


class CompletedStatus(msgspec.Struct):
    """A run that succeeded. Times are in seconds, from its last start on."""

    status: Literal["completed"]
    state: Literal["SUCCESS"]
    result: CrewResult
    execution_time: float


class ErrorStatus(msgspec.Struct):
    """A run that failed or was cancelled."""

    status: Literal["error"]
    state: Literal["FAILED"]
    error: str
    execution_time: float


Status = RunningStatus | AwaitingStatus | CompletedStatus | ErrorStatus


@get("/inputs", summary="The inputs of a crew", responses=amp_responses(404))
async def crew_inputs(crew: FromPath[str], state: State) -> InputsAnswer:
    runs: RunService = state.runs
    return InputsAnswer(list(runs.inputs(crew)))


@post(
    "/kickoff",
    status_code=200,
    summary="Start a run",
    responses=amp_responses(404, 422, 503),
)
async def kickoff(
    request: CallerRequest, crew: FromPath[str], data: JSONBody[Kickoff], state: State
) -> KickoffAnswer:
    """Accepted when this answers: the run will be carried to its end."""
    runs: RunService = state.runs
    options = RunOptions(webhooks=_webhooks(data), meta=data.meta)
    run = await runs.submit(crew, data.inputs, request.user, options)
    return KickoffAnswer(run.run_id)


@get(
    ["/status/{kickoff_id:uuid}", "/{kickoff_id:uuid}/status"],
    summary="How a run stands",
    responses=amp_responses(404),
)
async def crew_status(
    request: CallerRequest, crew: FromPath[str], kickoff_id: FromPath[UUID], state: State
) -> Status:
    runs: RunService = state.runs
    run = await _run(runs, crew, kickoff_id, request)
    return _status(run, await runs.tasks(run))


@post(
    "/resume",
    status_code=200,
    summary="Say what a human thinks of a task's output",
    responses=amp_responses(404, 503),
)
async def resume(
    request: CallerRequest, crew: FromPath[str], data: JSONBody[Resume], state: State
) -> ResumeAnswer:
    """Of two answers at once, one counts; a run that doesn't wait for it answers 400."""
    runs: RunService = state.runs
    await _run(runs, crew, data.execution_id, request)
    await runs.resume(
        ReviewDecision(
            data.execution_id, data.task_id, data.human_feedback, data.is_approve, _webhooks(data)
        ),
        request.user,
    )
    if data.is_approve:
        return ResumeAnswer("resumed", "the run goes on")
    return ResumeAnswer("retrying", f"the task {data.task_id} is done again")


def _missing_inputs(_: Request[Any, Any, Any], error: MissingInputs) -> Response[AmpError]:
    details = {"missing_inputs": list(error.names)}
    return Response(AmpError("Validation Error", str(error), details), status_code=422)


def _unknown_run(_: Request[Any, Any, Any], error: UnknownRun) -> Response[AmpError]:
    return Response(AmpError("Execution not found", str(error)), status_code=404)


amp_router = Router(
    "/crews/{crew:str}",
    route_handlers=[crew_inputs, kickoff, resume, crew_status],
    exception_handlers={MissingInputs: _missing_inputs, UnknownRun: _unknown_run},
    tags=["crews"],
)


async def _run(runs: RunService, crew: str, run_id: UUID, request: CallerRequest) -> Run:
    """The run, if it is of this crew."""
    run = await runs.get(run_id, request.user)
    if run.crew != crew:
        raise UnknownRun(run_id)
    return run


def _webhooks(given: WebhookUrls) -> dict[WebhookKind, Webhook]:
    urls: Mapping[WebhookKind, str | None] = {
        "task": given.task_webhook_url,
        "step": given.step_webhook_url,
        "crew": given.crew_webhook_url,
    }
    webhooks = {role: Webhook(url) for role, url in urls.items() if url is not None}
    if (human := given.human_input_webhook) is not None:
        webhooks["human"] = Webhook(human.url, _authorization(human.authentication))
    return webhooks


def _authorization(authentication: Bearer | Basic | None) -> str | None:
    if authentication is None:
        return None
    if isinstance(authentication, Bearer):
        if not (authentication.token.isascii() and authentication.token.isprintable()):
            raise InvalidInput("humanInputWebhook.authentication.token", "not a bearer token")
        return f"Bearer {authentication.token}"
    pair = f"{authentication.username}:{authentication.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _status(run: Run, tasks: Sequence[Mapping[str, Any]]) -> Status:
    if run.status == RunStatus.SUCCEEDED:
        result = CrewResult(run.raw_result or "", [_result(task, run) for task in tasks])
        return CompletedStatus("completed", "SUCCESS", result, _seconds(run))
    if run.status in (RunStatus.FAILED, RunStatus.CANCELLED):
        return ErrorStatus("error", "FAILED", run.error or run.status, _seconds(run))
    running = next((task["name"] for task in tasks if task["status"] == "running"), None)
    completed = sum(task["status"] in ("finished", "skipped") for task in tasks)
    progress = Progress(completed, len(tasks))
    if (human := run.awaiting) is not None:
        awaited = Awaited(human.task, human.output)
        return AwaitingStatus("running", "PENDING HUMAN INPUT", human.task, progress, awaited)
    waits = run.status == RunStatus.QUEUED
    return RunningStatus("running", "PENDING" if waits else "STARTED", running, progress)


def _result(task: Mapping[str, Any], run: Run) -> TaskResult:
    name, seconds = task["name"], None
    if task.get("started_at") and task.get("finished_at"):
        begun, ended = (
            msgspec.convert(task[which], datetime) for which in ("started_at", "finished_at")
        )
        seconds = (ended - begun).total_seconds()
    return TaskResult(name, (run.outputs or {}).get(name, ""), task["agent"], seconds)


def _seconds(run: Run) -> float:
    if run.started_at is None or run.finished_at is None:
        return 0.0
    return (run.finished_at - run.started_at).total_seconds()
