"""The events that each kind of webhook subscribes to, and the bodies of its requests.

`run` is our own webhook. The others are those of CrewAI's hosted platform, with bodies as its
clients know them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec

from app.runs.events.event import SETTLING, EventType
from app.runs.records import RunStatus, WebhookKind

SUBSCRIBED_EVENTS: Final[Mapping[WebhookKind, frozenset[EventType]]] = {
    "run": SETTLING | {EventType.TASK_FINISHED, EventType.RUN_AWAITING_HUMAN},
    "task": frozenset({EventType.TASK_FINISHED}),
    "step": frozenset({EventType.TASK_STEP}),
    "crew": SETTLING,
    "human": frozenset({EventType.RUN_AWAITING_HUMAN}),
}
# The names of webhooks in requests, for errors about their URL.
FIELDS: Final[Mapping[WebhookKind, str]] = {
    "run": "webhook_url",
    "task": "taskWebhookUrl",
    "step": "stepWebhookUrl",
    "crew": "crewWebhookUrl",
    "human": "humanInputWebhook.url",
}
_OF_TASKS: Final = ("index", "name", "agent", "started_at")
_OF_REVIEWS: Final = ("index", "name", "agent", "output")
_OF_STEPS: Final = ("agent", "thought", "tool", "tool_input", "result")


@dataclass(frozen=True, slots=True)
class EventSnapshot:
    """An event, with the row of its run as it is when the event is sent."""

    run_id: UUID
    crew: str
    type: str
    at: datetime
    data: Mapping[str, Any]
    status: str
    outputs: Mapping[str, str] | None
    raw_result: str | None
    usage: Mapping[str, int] | None
    error: str | None
    error_type: str | None
    meta: Any


def body(kind: WebhookKind, event: EventSnapshot) -> dict[str, Any]:
    """The body of a request to a webhook of this kind, for an event that it subscribes to."""
    if kind == "run":
        return {"type": event.type, "timestamp": event.at, "data": _of_run(event)}
    return {"kickoff_id": event.run_id, "meta": event.meta, **_AMP_BODIES[kind](event)}


def _of_run(event: EventSnapshot) -> dict[str, Any]:
    data: dict[str, Any] = {"run_id": event.run_id, "crew": event.crew}
    if event.type == EventType.TASK_FINISHED:
        return data | {name: event.data.get(name) for name in _OF_TASKS}
    if event.type == EventType.RUN_AWAITING_HUMAN:
        return data | {name: event.data[name] for name in _OF_REVIEWS}
    return data | {
        "status": event.status,
        "outputs": event.outputs,
        "error": event.error,
        "error_type": event.error_type,
    }


def _of_task(event: EventSnapshot) -> dict[str, Any]:
    name, structured = event.data["name"], event.data.get("structured")
    return {
        "task_id": name,
        "name": name,
        "agent": event.data["agent"],
        "output": event.data.get("output"),
        "output_json": structured and msgspec.json.decode(structured),
    }


def _of_step(event: EventSnapshot) -> dict[str, Any]:
    return {"task_id": event.data["name"], **{n: event.data.get(n) for n in _OF_STEPS}}


def _of_crew(event: EventSnapshot) -> dict[str, Any]:
    return {
        "status": "completed" if event.status == RunStatus.SUCCEEDED else "error",
        "result": event.raw_result,
        "error": event.error,
        "token_usage": event.usage,
    }


def _of_human(event: EventSnapshot) -> dict[str, Any]:
    return {
        "execution_id": event.run_id,
        "task_id": event.data["name"],
        "output": event.data["output"],
    }


_AMP_BODIES: Final = {"task": _of_task, "step": _of_step, "crew": _of_crew, "human": _of_human}
