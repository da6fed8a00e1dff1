"""Webhooks in the dialect of CrewAI's hosted platform (AMP), as its clients know them."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.runs.records import RunStatus, WebhookKind, without_cost
from app.runs.webhooks.event_snapshot import EventSnapshot

AMP_FIELDS: Final[Mapping[WebhookKind, str]] = {
    "task": "taskWebhookUrl",
    "step": "stepWebhookUrl",
    "crew": "crewWebhookUrl",
    "human": "humanInputWebhook.url",
}
"""The platform's names of webhooks in requests."""

_OF_STEPS: Final = ("agent", "thought", "tool", "tool_input", "result")


def amp_body(kind: WebhookKind, event: EventSnapshot) -> dict[str, Any]:
    """The body of a request to a webhook of one of the platform's kinds."""
    return {"kickoff_id": event.run_id, "meta": event.meta, **_BODIES[kind](event)}


def _of_task(event: EventSnapshot) -> dict[str, Any]:
    name, structured = event.data["name"], event.data.get("structured")
    return {
        "task_id": name,
        "name": name,
        "agent": event.data["agent"],
        "output": event.data.get("output"),
        "output_json": structured and msgspec.json.decode(structured),
        "token_usage": event.data.get("usage"),
    }


def _of_step(event: EventSnapshot) -> dict[str, Any]:
    return {"task_id": event.data["name"], **{n: event.data.get(n) for n in _OF_STEPS}}


def _of_crew(event: EventSnapshot) -> dict[str, Any]:
    return {
        "status": "completed" if event.status == RunStatus.SUCCEEDED else "error",
        "result": event.raw_result,
        "error": event.error,
        "token_usage": without_cost(event.usage),
    }


def _of_human(event: EventSnapshot) -> dict[str, Any]:
    return {
        "execution_id": event.run_id,
        "task_id": event.data["name"],
        "output": event.data["output"],
    }


_BODIES: Final = {"task": _of_task, "step": _of_step, "crew": _of_crew, "human": _of_human}
