"""Runs as a resource: submit, wait, inspect, list, subscribe, cancel, resume, delete.

Entry points (`app.api`, `app.cli`) import from here; only the composition root imports the parts.
"""

from app.runs.crew_info import CrewInfo, CrewInput
from app.runs.errors import (
    AwaitingHuman,
    IdempotencyConflict,
    InvalidInput,
    LimitReached,
    MissingInputs,
    NotAwaitingHuman,
    Overloaded,
    RunError,
    RunMoved,
    RunUnsettled,
    ShuttingDown,
    UnknownCrew,
    UnknownOutput,
    UnknownRun,
)
from app.runs.events.hub import Event
from app.runs.execution.worker import SettledRun
from app.runs.human_input import HumanInput, awaited_by
from app.runs.models import UNSETTLED, DeliveryStatus, RunStatus
from app.runs.models import UserRun as Run
from app.runs.models import WebhookDelivery as Delivery
from app.runs.persistence.queries import RunFilter
from app.runs.persistence.repository import ReviewDecision
from app.runs.service import RunOptions, RunService
from app.runs.webhooks.outbox import webhook_id
from app.runs.webhooks.payloads import Webhook, WebhookKind, webhooks_at

__all__ = [
    "UNSETTLED",
    "AwaitingHuman",
    "CrewInfo",
    "CrewInput",
    "Delivery",
    "DeliveryStatus",
    "Event",
    "HumanInput",
    "IdempotencyConflict",
    "InvalidInput",
    "LimitReached",
    "MissingInputs",
    "NotAwaitingHuman",
    "Overloaded",
    "ReviewDecision",
    "Run",
    "RunError",
    "RunFilter",
    "RunMoved",
    "RunOptions",
    "RunService",
    "RunStatus",
    "RunUnsettled",
    "SettledRun",
    "ShuttingDown",
    "UnknownCrew",
    "UnknownOutput",
    "UnknownRun",
    "Webhook",
    "WebhookKind",
    "awaited_by",
    "webhook_id",
    "webhooks_at",
]
