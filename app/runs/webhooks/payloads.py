"""The events that each kind of webhook subscribes to, and the bodies of its requests.

`run` is this service's own webhook. The others are those of CrewAI's hosted platform (AMP).
"""

from collections.abc import Mapping
from typing import Any, Final

from app.runs.events.event import SETTLING, EventType
from app.runs.records import WebhookKind, output_path
from app.runs.webhooks.amp_payloads import AMP_FIELDS, amp_body
from app.runs.webhooks.event_snapshot import EventSnapshot

SUBSCRIBED_EVENTS: Final[Mapping[WebhookKind, frozenset[EventType]]] = {
    "run": SETTLING | {EventType.TASK_FINISHED, EventType.RUN_AWAITING_HUMAN},
    "task": frozenset({EventType.TASK_FINISHED}),
    "step": frozenset({EventType.TASK_STEP}),
    "crew": SETTLING,
    "human": frozenset({EventType.RUN_AWAITING_HUMAN}),
}
# The names of webhooks in requests, for errors about their URL.
FIELDS: Final[Mapping[WebhookKind, str]] = {"run": "webhook_url", **AMP_FIELDS}
_OF_TASKS: Final = ("index", "name", "agent", "started_at", "usage", "run_usage")
_OF_REVIEWS: Final = ("index", "name", "agent", "output")


def body(kind: WebhookKind, event: EventSnapshot) -> dict[str, Any]:
    """The body of a request to a webhook of this kind, for an event that it subscribes to."""
    if kind == "run":
        return {"type": event.type, "timestamp": event.at, "data": _of_run(event)}
    return amp_body(kind, event)


def _of_run(event: EventSnapshot) -> dict[str, Any]:
    data: dict[str, Any] = {"run_id": event.run_id, "crew": event.crew}
    if event.metadata:
        data["metadata"] = event.metadata
    if event.type == EventType.TASK_FINISHED:
        path = output_path(event.run_id, event.data["name"])
        return data | {name: event.data.get(name) for name in _OF_TASKS} | {"output_path": path}
    if event.type == EventType.RUN_AWAITING_HUMAN:
        return data | {name: event.data[name] for name in _OF_REVIEWS}
    return data | {
        "status": event.status,
        "outputs": event.outputs,
        "error": event.error,
        "error_type": event.error_type,
    }
