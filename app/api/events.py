"""The `data` of the events of a run, as `GET /api/runs/{run_id}/events` sends them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Union
from uuid import UUID

import msgspec
from litestar.openapi.spec import OpenAPIResponse, OpenAPIType, Operation, Reference, Schema

from app.runs import EventType


class _RunEvent(msgspec.Struct, kw_only=True):
    run_id: UUID
    at: datetime


class _TaskEvent(_RunEvent, kw_only=True):
    index: int
    name: str
    agent: str


class RunQueuedEvent(_RunEvent, kw_only=True):
    """`run.queued`: the run is accepted, or retried; `attempt` is only present after a retry."""

    attempt: int | msgspec.UnsetType = msgspec.UNSET


class RunRunningEvent(_RunEvent, kw_only=True):
    """`run.running`: an attempt at the run has begun."""

    attempt: int
    fingerprint: str | None


class RunAwaitingHumanEvent(_TaskEvent, kw_only=True):
    """`run.awaiting_human`: the output of a task waits for a review."""

    output: str


class RunResumedEvent(_RunEvent, kw_only=True):
    """`run.resumed`: a human has reviewed the output."""

    index: int
    name: str
    feedback: str
    approve: bool


class _EndEvent(_RunEvent, kw_only=True):
    metadata: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class RunSucceededEvent(_EndEvent):
    """`run.succeeded`: the last event of a run whose outputs are available."""


class _ErrorEvent(_EndEvent, kw_only=True):
    error: str | msgspec.UnsetType = msgspec.UNSET
    error_type: str | msgspec.UnsetType = msgspec.UNSET


class RunFailedEvent(_ErrorEvent):
    """`run.failed`: the last event of a run that failed."""


class RunCancelledEvent(_ErrorEvent):
    """`run.cancelled`: the last event of a run that was cancelled."""


class TaskStartedEvent(_TaskEvent, kw_only=True):
    """`task.started`: an agent has begun a task."""


class TaskFinishedEvent(_TaskEvent, kw_only=True):
    """`task.finished`: a task has ended.

    `usage` is that of the task, and `run_usage` that of the run until then, with its cost as
    `cost_nano_usd`. `cost` is that of the task in this attempt, in USD. Events of older versions
    have the run's as `usage`, and lack `run_usage`, `models` and `cost`. `output` is only present
    if a webhook receives tasks.
    """

    started_at: datetime
    structured: Any
    usage: dict[str, int]
    run_usage: dict[str, int] | msgspec.UnsetType = msgspec.UNSET
    models: list[str] | msgspec.UnsetType = msgspec.UNSET
    cost: float | msgspec.UnsetType | None = msgspec.UNSET
    output_path: str | msgspec.UnsetType = msgspec.UNSET
    output: str | msgspec.UnsetType = msgspec.UNSET


class TaskStepEvent(_TaskEvent, kw_only=True):
    """`task.step`: an agent has finished a step; only present if a webhook receives steps."""

    thought: str
    tool: str | None
    tool_input: str | None
    result: str


class TaskTokensEvent(_RunEvent, kw_only=True):
    """`task.tokens`: a part of the text that a model streams; never stored.

    `so_far` is only present, and true, if `text` is all that was streamed in the task until then.
    """

    index: int
    name: str
    text: str
    so_far: bool | msgspec.UnsetType = msgspec.UNSET


EVENTS: dict[EventType, type[_RunEvent]] = {
    EventType.RUN_QUEUED: RunQueuedEvent,
    EventType.RUN_RUNNING: RunRunningEvent,
    EventType.RUN_AWAITING_HUMAN: RunAwaitingHumanEvent,
    EventType.RUN_RESUMED: RunResumedEvent,
    EventType.RUN_SUCCEEDED: RunSucceededEvent,
    EventType.RUN_FAILED: RunFailedEvent,
    EventType.RUN_CANCELLED: RunCancelledEvent,
    EventType.TASK_STARTED: TaskStartedEvent,
    EventType.TASK_FINISHED: TaskFinishedEvent,
    EventType.TASK_STEP: TaskStepEvent,
    EventType.TASK_TOKENS: TaskTokensEvent,
}
"""The data of each type of event."""

EVENT_DATA: Any = Union[tuple(EVENTS.values())]  # noqa: UP007
"""The data of any event."""


@dataclass
class EventsOperation(Operation):
    """The description of an operation that streams events.

    The schema of the stream is that of one event: its `event` names the type, and its `data` is
    JSON.
    """

    def __post_init__(self) -> None:
        response = (self.responses or {})["200"]
        if isinstance(response, OpenAPIResponse) and response.content is not None:
            content = response.content["text/event-stream"]
            if isinstance(content.schema, Schema) and content.schema.one_of is not None:
                events = zip(EVENTS, content.schema.one_of, strict=True)
                content.schema = Schema(one_of=[_event(*event) for event in events])


def _event(type_: EventType, data: Schema | Reference) -> Schema:
    """One event of a stream, as JSON Schema; tokens are not stored and have no id."""
    return Schema(
        type=OpenAPIType.OBJECT,
        properties={
            "id": Schema(type=OpenAPIType.STRING),
            "event": Schema(const=type_.value),
            "data": Schema(
                type=OpenAPIType.STRING,
                content_media_type="application/json",
                content_schema=data,
            ),
        },
        required=["event", "data"],
    )
