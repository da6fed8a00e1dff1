"""Runs as a resource: submit, wait, inspect, list, subscribe, cancel, resume, delete.

Entry points (`app.api`, `app.cli`) import from here; only the composition root imports the parts.
"""

from app.runs.background import PeriodicService
from app.runs.batch_ids import time_ordered_id
from app.runs.batches import Batches
from app.runs.call_records import CallContent, CallPage, CallRecord
from app.runs.crew_info import CrewInfo, CrewInput
from app.runs.errors import (
    AwaitingHuman,
    IdempotencyConflict,
    InvalidInput,
    LimitReached,
    MissingInputs,
    NotAwaitingHuman,
    NotRetryable,
    OutputElsewhere,
    Overloaded,
    RunError,
    RunMoved,
    RunUnsettled,
    ShuttingDown,
    UnknownBatch,
    UnknownCrew,
    UnknownOutput,
    UnknownRun,
)
from app.runs.events.event import Event, EventType
from app.runs.human_input import HumanInput
from app.runs.inputs import check_batch_values, check_bounds, clean_text
from app.runs.maintenance.sweeper import Sweeper
from app.runs.memories import Memories, MemoryView
from app.runs.metadata import METADATA_LIMITS
from app.runs.queue.base import RunQueue
from app.runs.records import (
    MAX_COUNTED_REVIEWS,
    MAX_PRIORITY,
    UNSETTLED,
    USAGE_COUNTS,
    Batch,
    Delivery,
    DeliveryStatus,
    ListedRun,
    LiveWorker,
    QueueReason,
    ReviewDecision,
    Run,
    RunFilter,
    RunOptions,
    RunPage,
    RunStatus,
    ScheduledRun,
    UsageFilter,
    UsageRow,
    Webhook,
    WebhookKind,
    output_path,
    webhooks_at,
)
from app.runs.secrets import SECRETS_LIMITS
from app.runs.service import RunService
from app.runs.summaries import ERROR_TYPES, advice, excerpt, seconds_between, summary

__all__ = [
    "ERROR_TYPES",
    "MAX_COUNTED_REVIEWS",
    "MAX_PRIORITY",
    "METADATA_LIMITS",
    "SECRETS_LIMITS",
    "UNSETTLED",
    "USAGE_COUNTS",
    "AwaitingHuman",
    "Batch",
    "Batches",
    "CallContent",
    "CallPage",
    "CallRecord",
    "CrewInfo",
    "CrewInput",
    "Delivery",
    "DeliveryStatus",
    "Event",
    "EventType",
    "HumanInput",
    "IdempotencyConflict",
    "InvalidInput",
    "LimitReached",
    "ListedRun",
    "LiveWorker",
    "Memories",
    "MemoryView",
    "MissingInputs",
    "NotAwaitingHuman",
    "NotRetryable",
    "OutputElsewhere",
    "Overloaded",
    "PeriodicService",
    "QueueReason",
    "ReviewDecision",
    "Run",
    "RunError",
    "RunFilter",
    "RunMoved",
    "RunOptions",
    "RunPage",
    "RunQueue",
    "RunService",
    "RunStatus",
    "RunUnsettled",
    "ScheduledRun",
    "ShuttingDown",
    "Sweeper",
    "UnknownBatch",
    "UnknownCrew",
    "UnknownOutput",
    "UnknownRun",
    "UsageFilter",
    "UsageRow",
    "Webhook",
    "WebhookKind",
    "advice",
    "check_batch_values",
    "check_bounds",
    "clean_text",
    "excerpt",
    "output_path",
    "seconds_between",
    "summary",
    "time_ordered_id",
    "webhooks_at",
]
