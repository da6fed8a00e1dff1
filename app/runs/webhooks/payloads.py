"""Who is told what of a run: each of its webhooks has a role, which says what it hears and how.

`run` is our own webhook. The others are those of CrewAI's hosted platform, with bodies as its
clients know them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

WebhookKind = Literal["run", "task", "step", "crew", "human"]

_ENDS: Final = frozenset({"run.succeeded", "run.failed", "run.cancelled"})
SUBSCRIBED_EVENTS: Final[Mapping[WebhookKind, frozenset[str]]] = {
    "run": _ENDS | {"task.finished", "run.awaiting_human"},
    "task": frozenset({"task.finished"}),
    "step": frozenset({"task.step"}),
    "crew": _ENDS,
    "human": frozenset({"run.awaiting_human"}),
}
# How requests name a webhook, for errors about its address.
FIELDS: Final[Mapping[WebhookKind, str]] = {
    "run": "webhook_url",
    "task": "taskWebhookUrl",
    "step": "stepWebhookUrl",
    "crew": "crewWebhookUrl",
    "human": "humanInputWebhook.url",
}
_TOLD_OF_TASKS: Final = ("index", "name", "agent", "started_at")
_TOLD_OF_WAITING: Final = ("index", "name", "agent", "output")
_TOLD_OF_STEPS: Final = ("agent", "thought", "tool", "tool_input", "result")


class Webhook(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a webhook goes; `authorization` is the header of that name that its receiver wants."""

    url: str
    authorization: str | None = None


Webhooks = Mapping[WebhookKind, Webhook]


def webhooks_at(url: str | None) -> Webhooks:
    """Our own webhook at that URL, if there is one."""
    return {} if url is None else {"run": Webhook(url)}


def webhooks_of(stored: object) -> Webhooks:
    """The webhooks of a run, as its row keeps them."""
    return msgspec.convert(stored or {}, dict[WebhookKind, Webhook])


@dataclass(frozen=True, slots=True)
class EventSnapshot:
    """An event with what else there is to tell of its run: the run's row as it is by now."""

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


def body(role: WebhookKind, told: EventSnapshot) -> dict[str, Any]:
    """What a webhook of the role is told of an event that it hears."""
    if role == "run":
        return {"type": told.type, "timestamp": told.at, "data": _of_run(told)}
    return {"kickoff_id": told.run_id, "meta": told.meta, **_AMP_BODIES[role](told)}


def _of_run(told: EventSnapshot) -> dict[str, Any]:
    data: dict[str, Any] = {"run_id": told.run_id, "crew": told.crew}
    if told.type == "task.finished":
        return data | {name: told.data.get(name) for name in _TOLD_OF_TASKS}
    if told.type == "run.awaiting_human":
        return data | {name: told.data[name] for name in _TOLD_OF_WAITING}
    return data | {
        "status": told.status,
        "outputs": told.outputs,
        "error": told.error,
        "error_type": told.error_type,
    }


def _of_task(told: EventSnapshot) -> dict[str, Any]:
    name, structured = told.data["name"], told.data.get("structured")
    return {
        "task_id": name,
        "name": name,
        "agent": told.data["agent"],
        "output": told.data.get("output"),
        "output_json": structured and msgspec.json.decode(structured),
    }


def _of_step(told: EventSnapshot) -> dict[str, Any]:
    return {"task_id": told.data["name"], **{n: told.data.get(n) for n in _TOLD_OF_STEPS}}


def _of_crew(told: EventSnapshot) -> dict[str, Any]:
    return {
        "status": "completed" if told.status == "succeeded" else "error",
        "result": told.raw_result,
        "error": told.error,
        "token_usage": told.usage,
    }


def _of_human(told: EventSnapshot) -> dict[str, Any]:
    return {
        "execution_id": told.run_id,
        "task_id": told.data["name"],
        "output": told.data["output"],
    }


_AMP_BODIES: Final = {"task": _of_task, "step": _of_step, "crew": _of_crew, "human": _of_human}
