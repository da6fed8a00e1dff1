"""Responses of `/api/runs`, and how they are made of runs."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.access.callers import Caller
from app.runs import (
    CallContent,
    CallPage,
    CallRecord,
    Delivery,
    DeliveryStatus,
    HumanInput,
    ListedRun,
    QueueReason,
    Run,
    RunService,
    RunStatus,
    excerpt,
    summary,
)


class BatchAnswer(msgspec.Struct):
    """The batch, and the ids of its runs in the order of their inputs."""

    batch_id: UUID
    run_ids: list[UUID]


class AwaitingView(msgspec.Struct):
    """The task for a human to review, its agent, its output, and when that was finished."""

    task: str
    agent: str
    output: str
    since: datetime


class TaskView(msgspec.Struct):
    """A task of a run.

    `status` is pending, running, finished, awaiting_human or skipped. A task that ran as its run
    ended without success is failed or cancelled.

    An earlier attempt at the run finished a replayed task. `models` are the models that the task
    called, in the order of their first calls. `cost` is in USD; null if no call of the task has a
    price.
    """

    name: str
    agent: str
    status: str
    replayed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    models: tuple[str, ...] = ()
    cost: float | None = None


class DeliveryView(msgspec.Struct):
    """A delivery of an event to one of the run's webhooks.

    `id` is the value of its `webhook-id` header, `role` is `run` for a `webhook_url`. `last_result`
    is the result of the last attempt: an HTTP status, or the reason for having none.
    `next_attempt_at` is null after the last attempt.
    """

    id: str
    role: str
    event: str
    host: str
    status: DeliveryStatus
    attempts: int
    last_result: str | None
    created_at: datetime
    attempted_at: datetime | None
    next_attempt_at: datetime | None


class RunState(msgspec.Struct, kw_only=True):
    """The state of a run; `summary` is one sentence on it, for people.

    `excerpt` is the start of the result in one line, without the signs of markdown.
    `metadata` are the names and texts that the client has given it. `batch_id` is the batch in
    which it was submitted. `cost` is in USD, that of the calls whose model has a price; null if
    none has. `usage` counts the others as `unpriced_calls`. A queued run whose `not_before` is in
    the future waits for that time. `waited_seconds` counts from then. `key` is the id of the API
    key that submitted it; null without one. `user` is the end user that the client has named.
    `schedule_id` is the schedule that submitted it, for the time `due_at`.
    """

    run_id: UUID
    crew: str
    status: RunStatus
    summary: str
    excerpt: str | None
    error: str | None
    error_type: str | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    waited_seconds: float | None
    usage: dict[str, int] | None
    cost: float | None
    metadata: dict[str, str]
    batch_id: UUID | None
    priority: int
    not_before: datetime | None
    key: str | None
    user: str | None
    schedule_id: UUID | None
    due_at: datetime | None


class RunSummary(RunState, kw_only=True):
    """A run as an item of a list, which has at most 2,000 characters of its error.

    If its inputs are larger than 2,000 characters of JSON, `inputs` is null and `inputs_truncated`
    is true. The run's own address has them.
    """

    inputs: dict[str, Any] | None
    inputs_truncated: bool


class RunView(RunState, kw_only=True):
    """A run with its inputs, tasks and webhooks.

    `assumed_inputs` are the inputs that were not given and have their defaults.
    `outputs` has the output of each finished task, also if the run failed or was cancelled.
    `awaiting` has a value while it waits for a human. `queue_reason` says why a run is queued.
    `not_before`: that time is in the future. `no_worker`: no live worker has the run's crew.
    `no_slot`: the workers that have it have no free slot. Null: the run is about to start, or is
    not queued. `worker` is the process that executes the run, or executed it last; null for callers
    that are no admins.
    """

    inputs: dict[str, Any]
    assumed_inputs: list[str]
    outputs: dict[str, str] | None
    awaiting: AwaitingView | None
    queue_reason: QueueReason | None
    worker: str | None
    tasks: list[TaskView]
    webhooks: list[DeliveryView]


class RunList(msgspec.Struct):
    """Runs, newest first; pass `next_cursor` as `cursor` for the next page."""

    runs: list[RunSummary]
    next_cursor: str | None


class CallTask(msgspec.Struct):
    """The task that a call belongs to; `index` counts the run's tasks from 0."""

    index: int
    name: str


class CallTokens(msgspec.Struct):
    """The tokens of a call, as the model reported them.

    `cached` are part of `input`, and `reasoning` of `output`.
    """

    input: int
    output: int
    cached: int
    reasoning: int


class CallMessages(msgspec.Struct):
    """The texts of a call, which are kept with KEEP_MESSAGES only.

    A call to a model has `messages`, `tools` (their definitions) and an `answer`. A call to a tool
    has an `input` and a `result`.
    """

    messages: Any
    tools: Any
    answer: Any
    input: Any
    result: Any


class CallView(msgspec.Struct):
    """A call to a model or to a tool: either `model` or `tool` has a value.

    `id` counts the calls of the attempt from 1. `within` is the id of the tool call that made it.
    `finished_at` is null while the call is under way, and for a call that its run did not wait for.
    `first_token_seconds` is known for streamed answers. `waited_seconds` is the time for a
    connection. `error_type` is the class of the error that ended the call. `cost` is in USD; null
    for a model without a price, and until the call ends. `content_omitted` is true if the run's
    room for texts was used up.
    """

    attempt: int
    id: int
    task: CallTask | None
    within: int | None
    model: str | None
    tool: str | None
    started_at: datetime
    first_token_seconds: float | None
    finished_at: datetime | None
    waited_seconds: float
    tokens: CallTokens | None
    finish_reason: str | None
    retries: int
    error_type: str | None
    cost: float | None
    content: CallMessages | None
    content_omitted: bool


class CallList(msgspec.Struct):
    """Calls in the order of their starts; pass `next_cursor` as `cursor` for the next page."""

    calls: list[CallView]
    next_cursor: str | None


async def run_view(runs: RunService, run: Run, caller: Caller) -> RunView:
    """The run in full, as the caller sees it; reads its tasks and deliveries."""
    tasks = [msgspec.convert(task, TaskView) for task in await runs.tasks(run)]
    webhooks = [_delivery_view(delivery) for delivery in await runs.deliveries(run)]
    human = run.awaiting
    return RunView(
        **_state_fields(run),
        inputs=run.inputs,
        assumed_inputs=list(run.assumed_inputs),
        outputs=dict(outputs) if (outputs := await runs.outputs(run)) else None,
        awaiting=_awaiting_view(human) if human is not None else None,
        queue_reason=await runs.queue_reason(run),
        worker=run.executed_by if caller.is_admin else None,
        tasks=tasks,
        webhooks=webhooks,
    )


def _awaiting_view(human: HumanInput) -> AwaitingView:
    return AwaitingView(human.task, human.agent, human.output, human.finished_at)


def call_list(page: CallPage) -> CallList:
    """A page of a run's calls."""
    return CallList([_call_view(call, content) for call, content in page.calls], page.next_cursor)


def _call_view(call: CallRecord, content: CallContent | None) -> CallView:
    return CallView(
        attempt=call.attempt,
        id=call.id,
        task=CallTask(call.index, call.task) if call.index is not None and call.task else None,
        within=call.within,
        model=call.model,
        tool=call.tool,
        started_at=call.began_at,
        first_token_seconds=call.first_token_seconds,
        finished_at=call.ended_at,
        waited_seconds=call.waited_seconds,
        tokens=_tokens(call) if call.tool is None else None,
        finish_reason=call.finish_reason,
        retries=call.retries,
        error_type=call.error_type,
        cost=call.cost_usd,
        content=None if content is None else CallMessages(**msgspec.structs.asdict(content)),
        content_omitted=call.content_omitted,
    )


def _tokens(call: CallRecord) -> CallTokens:
    return CallTokens(
        call.input_tokens, call.output_tokens, call.cached_tokens, call.reasoning_tokens
    )


def _delivery_view(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        role=delivery.role,
        event=delivery.event,
        host=delivery.host,
        status=delivery.status,
        attempts=delivery.attempts,
        last_result=delivery.last_result,
        created_at=delivery.created_at,
        attempted_at=delivery.attempted_at,
        next_attempt_at=delivery.due_at,
    )


def run_summary(run: ListedRun) -> RunSummary:
    """The run as an item of a list."""
    return RunSummary(**_state_fields(run), inputs=run.inputs, inputs_truncated=run.inputs is None)


def _state_fields(run: ListedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "crew": run.crew,
        "status": run.status,
        "summary": summary(run),
        "excerpt": excerpt(run),
        "error": run.error,
        "error_type": run.error_type,
        "attempt": run.attempt,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "waited_seconds": run.waited_seconds,
        "usage": run.used,
        "cost": run.cost,
        "metadata": dict(run.metadata or {}),
        "batch_id": run.batch_id,
        "priority": run.priority,
        "not_before": run.not_before,
        "key": run.owner or None,
        "user": run.end_user or None,
        "schedule_id": run.schedule_id,
        "due_at": run.due_at,
    }
