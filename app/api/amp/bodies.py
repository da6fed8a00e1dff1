"""Requests and responses in the dialect of CrewAI's hosted platform (AMP).

Statuses have two fields: `status` as the platform documents it, and `state` as older clients
compare it.
"""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.api.budget_fields import MaxCost, MaxCount
from app.api.order_fields import NotBefore, Priority
from app.runs import InvalidInput, Run, RunStatus, Webhook, WebhookKind


class Bearer(msgspec.Struct, tag_field="strategy", tag="bearer"):
    token: str


class Basic(msgspec.Struct, tag_field="strategy", tag="basic"):
    username: str
    password: str


class HumanInputWebhook(msgspec.Struct):
    """The webhook for runs that wait for a human, and the credentials that it requires."""

    url: str
    authentication: Bearer | Basic | None = None


def _platform_name(field: str) -> str | None:
    """The platform's name of a field: camel case for webhooks, snake case for executions."""
    if "webhook" not in field:
        return None
    first, *rest = field.split("_")
    return first + "".join(map(str.title, rest))


class WebhookUrls(msgspec.Struct, rename=_platform_name):
    """Webhooks for finished tasks, steps of agents, the end of the run, and waiting for a human."""

    task_webhook_url: str | None = None
    step_webhook_url: str | None = None
    crew_webhook_url: str | None = None
    human_input_webhook: HumanInputWebhook | None = None


class Kickoff(WebhookUrls, rename=_platform_name):
    """A run to submit; each webhook's body repeats `meta`.

    `max_cost` (USD), `max_model_calls` and `max_tokens` are the run's budget. `priority` and
    `not_before` say when it begins, as those of `POST /api/runs`.
    """

    inputs: dict[str, Any] = {}
    meta: dict[str, Any] | None = None
    max_cost: MaxCost | None = None
    max_model_calls: MaxCount | None = None
    max_tokens: MaxCount | None = None
    priority: Priority = 0
    not_before: NotBefore = None


class Resume(WebhookUrls, rename=_platform_name, kw_only=True):
    """A human's review of a task's output."""

    execution_id: UUID
    task_id: str
    human_feedback: str
    is_approve: bool


class ResumeAnswer(msgspec.Struct):
    """The status after a review; `retrying` if the task is executed again."""

    status: Literal["resumed", "retrying"]
    message: str


class KickoffAnswer(msgspec.Struct):
    kickoff_id: UUID


class InputsAnswer(msgspec.Struct):
    """The names of the crew's inputs."""

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
    """The output for a human to review."""

    task_id: str
    output: str


class AwaitingStatus(msgspec.Struct):
    """A run that waits for a human; `resume` continues it."""

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
    """A run that succeeded. Times are in seconds, counted from its last start."""

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


def webhooks_in(given: WebhookUrls) -> dict[WebhookKind, Webhook]:
    """The webhooks that a request names. Raises InvalidInput for a token that is no header."""
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


def status_of(run: Run, tasks: Sequence[Mapping[str, Any]]) -> Status:
    """The status of a run with its tasks."""
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
    state: Literal["PENDING", "STARTED"] = (
        "PENDING" if run.status == RunStatus.QUEUED else "STARTED"
    )
    return RunningStatus("running", state, running, progress)


def _result(task: Mapping[str, Any], run: Run) -> TaskResult:
    name, seconds = task["name"], None
    if task.get("started_at") and task.get("finished_at"):
        started_at, finished_at = (
            msgspec.convert(task[field], datetime) for field in ("started_at", "finished_at")
        )
        seconds = (finished_at - started_at).total_seconds()
    return TaskResult(name, (run.outputs or {}).get(name, ""), task["agent"], seconds)


def _seconds(run: Run) -> float:
    if run.started_at is None or run.finished_at is None:
        return 0.0
    return (run.finished_at - run.started_at).total_seconds()
