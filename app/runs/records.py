"""Typed records of runs: everything about a run that leaves this package.

Rows of the database stay inside `persistence` and `webhooks`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, Self
from urllib.parse import quote
from uuid import UUID

import msgspec

from app.budgets import Budget
from app.prices import usd
from app.runs.human_input import HumanInput
from app.telemetry.tracing import TraceHeaders

UsageCounts = dict[str, int]
"""The tokens and model calls that a run has used, by name; its cost, if known, is among them."""

COST: Final = "cost_nano_usd"
"""The name of the cost in nano-dollars among `UsageCounts`; absent if no call has a price."""


def without_cost(usage: Mapping[str, int] | None) -> UsageCounts | None:
    """The tokens and calls among a run's usage."""
    if usage is None:
        return None
    return {name: count for name, count in usage.items() if name != COST}


class RunStatus(StrEnum):
    """The states of a run, stored and shown in these very words."""

    QUEUED = "queued"
    RUNNING = "running"
    AWAITING_HUMAN = "awaiting_human"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


IN_FLIGHT: Final = (RunStatus.QUEUED, RunStatus.RUNNING)
"""The states of runs that a worker executes, or is to execute."""

UNSETTLED: Final = (*IN_FLIGHT, RunStatus.AWAITING_HUMAN)
"""The states of runs that have not ended."""


class DeliveryStatus(StrEnum):
    """The states of a webhook's delivery, stored and shown in these very words."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


WebhookKind = Literal["run", "task", "step", "crew", "human"]


class Webhook(msgspec.Struct, frozen=True, omit_defaults=True):
    """The URL of a webhook; `authorization` is the value of the `Authorization` header it needs."""

    url: str
    authorization: str | None = None


Webhooks = Mapping[WebhookKind, Webhook]


def webhooks_at(url: str | None) -> Webhooks:
    """A webhook of our own kind, `run`, at that URL; none without a URL."""
    return {} if url is None else {"run": Webhook(url)}


class ScheduledRun(NamedTuple):
    """The schedule of a run, and the time at which it was due; None if it was requested by hand."""

    schedule_id: UUID
    due_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of a submission, beside the inputs.

    `stream`: models stream from the first call. `idempotency_key`: repeated requests with the same
    key get the same run. `webhooks`: where events are sent; `meta`: data that is sent with them.
    `context_id`: the client's own name for a group of runs. `metadata`: the client's own names and
    texts, to find the run by. `budget` limits what the run uses, within the budgets of its crew and
    of its key. `secrets` reach the code of the crew, and are stored nowhere in plain text.
    Of its owner's waiting runs, those with the highest `priority` begin first. The run begins at
    `not_before` at the earliest. `scheduled` names the schedule that submits it.
    """

    stream: bool = False
    idempotency_key: str | None = None
    webhooks: Webhooks = field(default_factory=dict)
    meta: Any = None
    context_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    priority: int = 0
    not_before: datetime | None = None
    scheduled: ScheduledRun | None = None


QUEUE: Final = "queue"
"""The holder of a run, instead of a worker, while the broker has its id: any worker claims it."""

QUEUE_AFTER_LOSS: Final = "queue (worker lost)"
"""The same, for a run whose last attempt did not end: its worker was lost."""

QUEUES: Final = (QUEUE, QUEUE_AFTER_LOSS)
"""The holders that are no workers."""


def has_lost_worker(status: RunStatus, worker: str | None, lease_until: datetime | None) -> bool:
    """Whether the worker of the last attempt was lost, for a run that can be claimed.

    A worker that stops has released its leases.
    """
    if worker in QUEUES:
        return worker == QUEUE_AFTER_LOSS
    return status is RunStatus.RUNNING and lease_until is not None


MAX_PRIORITY: Final = 100
"""The highest priority; the lowest is as far below 0."""

MAX_DELAY: Final = timedelta(days=366)
"""How long after its submission a run begins at the latest, unless it waits for a slot."""

MAX_REASON_CHARACTERS: Final = 500
"""How many characters the reason for a cancellation has at most."""

MAX_LISTED_RESULT_CHARACTERS: Final = 1000
"""How many characters of the JSON of a run's result a list reads; it shows one line of them."""

MAX_LISTED_CHARACTERS: Final = 2000
"""How many characters of a run's inputs or error a list shows. It bounds the size of a list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedRun:
    """A run as lists show it: without outputs, and with no more than `MAX_LISTED_CHARACTERS` each
    of inputs, as JSON, and of the error. `inputs` is None if they are larger. `raw_result` is the
    start of the result. `owner` is '' where no API key submitted it, `end_user` is '' where the
    client named none.
    """

    run_id: UUID
    crew: str
    status: RunStatus
    inputs: dict[str, Any] | None
    attempt: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    usage: dict[str, int] | None = None
    error: str | None = None
    error_type: str | None = None
    raw_result: str | None = None
    metadata: Mapping[str, str] | None = None
    batch_id: UUID | None = None
    priority: int = 0
    not_before: datetime | None = None
    owner: str = ""
    end_user: str = ""
    schedule_id: UUID | None = None
    due_at: datetime | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the run has ended."""
        return self.status not in UNSETTLED

    @property
    def cost(self) -> float | None:
        """The cost in USD; None if no call has a price, or nothing was called."""
        nanos = (self.usage or {}).get(COST)
        return None if nanos is None else usd(nanos)

    @property
    def used(self) -> UsageCounts | None:
        """The usage without the cost."""
        return without_cost(self.usage)

    @property
    def waited_seconds(self) -> float | None:
        """The time until the start of the last attempt; None before the first.

        It counts from the submission, or from `not_before` if that is later.
        """
        if self.started_at is None:
            return None
        return waited_seconds(self.created_at, self.not_before, self.started_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(ListedRun):
    """A run as it stands.

    `assumed_inputs` are the inputs that were not given and have their defaults.
    `address` is set only for callers with a quota, and only until the run is settled. `human_input`
    is what the run has kept since its last pause. `worker` holds the run, or held it last.
    """

    inputs: dict[str, Any]
    assumed_inputs: tuple[str, ...] = ()
    address: str | None = None
    context_id: str | None = None
    webhooks: Webhooks = field(default_factory=dict)
    human_input: HumanInput | None = None
    lease_until: datetime | None = None
    outputs: dict[str, str] | None = None
    had_secrets: bool = False
    tasks: list[dict[str, Any]] | None = None
    worker: str | None = None

    @property
    def has_lost_worker(self) -> bool:
        """Whether the worker of the last attempt was lost, for a run whose lease has ended.

        A worker that stops has released its leases.
        """
        return has_lost_worker(self.status, self.worker, self.lease_until)

    def is_deferred_at(self, now: datetime) -> bool:
        """Whether the run, once it is queued, waits for its `not_before`."""
        return self.not_before is not None and self.not_before > now

    @property
    def executed_by(self) -> str | None:
        """The worker that executes the run, or executed it last; None while it waits for one."""
        has_one = self.attempt > 0 and self.status not in (
            RunStatus.QUEUED,
            RunStatus.AWAITING_HUMAN,
        )
        return self.worker if has_one and self.worker not in QUEUES else None

    @property
    def awaiting(self) -> HumanInput | None:
        """The review that the run waits for now; None if it waits for none."""
        return self.human_input if self.status is RunStatus.AWAITING_HUMAN else None


def waited_seconds(
    created_at: datetime, not_before: datetime | None, started_at: datetime
) -> float:
    """How long a run has waited: from its submission, or from `not_before` if that is later."""
    begin = created_at if not_before is None else max(created_at, not_before)
    return max(0.0, (started_at - begin).total_seconds())


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to accept.

    `request_digest` identifies the request: two requests of an owner with one `idempotency_key`
    must have the same digest. `trace` is the context of the request in its trace, if it has one.
    """

    run_id: UUID
    crew: str
    inputs: dict[str, Any]
    created_at: datetime
    owner: str = ""
    address: str | None = None
    stream: bool = False
    idempotency_key: str | None = None
    request_digest: str | None = None
    webhooks: Webhooks = field(default_factory=dict)
    meta: Any = None
    context_id: str | None = None
    assumed_inputs: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None
    batch_id: UUID | None = None
    trace: TraceHeaders | None = None
    budget: Budget | None = None
    priority: int = 0
    not_before: datetime | None = None
    end_user: str = ""
    schedule_id: UUID | None = None
    due_at: datetime | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    stored_secrets: bytes | None = field(default=None, repr=False)
    stored_inputs: msgspec.Raw = field(default_factory=msgspec.Raw, repr=False)
    """The inputs as JSON: the transaction that many runs share does not encode them.

    `replace` keeps them, so that it must not be given other inputs.
    """

    def __post_init__(self) -> None:
        if not self.stored_inputs:
            stored = msgspec.Raw(msgspec.json.encode(self.inputs))
            object.__setattr__(self, "stored_inputs", stored)  # it is frozen

    @property
    def is_deferred(self) -> bool:
        """Whether the run waits for its `not_before`."""
        return self.not_before is not None and self.not_before > self.created_at

    def queued(self) -> Run:
        """The run as it stands once it is accepted."""
        return Run(
            run_id=self.run_id,
            crew=self.crew,
            status=RunStatus.QUEUED,
            inputs=self.inputs,
            assumed_inputs=self.assumed_inputs,
            attempt=0,
            created_at=self.created_at,
            owner=self.owner,
            address=self.address,
            context_id=self.context_id,
            webhooks=self.webhooks,
            metadata=self.metadata,
            batch_id=self.batch_id,
            priority=self.priority,
            not_before=self.not_before,
            end_user=self.end_user,
            schedule_id=self.schedule_id,
            due_at=self.due_at,
        )


@dataclass(frozen=True, slots=True)
class AddedRun:
    """The run that stands for a request: a new one, or an earlier one with the same key."""

    run_id: UUID
    is_new: bool
    request_digest: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run, as its row keeps it."""

    status: RunStatus
    outputs: dict[str, str] | None = None
    raw_result: str | None = None
    tasks: list[dict[str, Any]] | None = None
    usage: UsageCounts | None = None
    error: str | None = None
    error_type: str | None = None


CANCELLED: Final = Outcome(RunStatus.CANCELLED, error="cancelled", error_type="cancelled")


class Settlement(NamedTuple):
    """The status that a settled run has, and the time at which it was settled."""

    status: RunStatus
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRun:
    """A run that this worker has claimed. `attempt` is the fencing token of its later writes.

    `worker` is the name of this worker. `trace` is the context of the request that submitted it, if
    that has a trace. `previous_started_at` is the start of the attempt before; None for the first
    one. `is_takeover`: the worker of the attempt before was lost.
    """

    run_id: UUID
    crew: str
    inputs: dict[str, Any]
    attempt: int
    created_at: datetime
    started_at: datetime
    worker: str
    owner: str = ""
    address: str | None = None
    context_id: str | None = None
    stream: bool = False
    webhooks: Webhooks = field(default_factory=dict)
    human_input: HumanInput | None = None
    assumed_inputs: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None
    batch_id: UUID | None = None
    trace: TraceHeaders | None = None
    previous_started_at: datetime | None = None
    is_takeover: bool = False
    budget: Budget | None = None
    priority: int = 0
    not_before: datetime | None = None
    end_user: str = ""
    schedule_id: UUID | None = None
    due_at: datetime | None = None
    stored_secrets: bytes | None = field(default=None, repr=False)

    def settled(self, outcome: Outcome, finished_at: datetime) -> Run:
        """The run as it stands once this outcome is committed."""
        return Run(
            run_id=self.run_id,
            crew=self.crew,
            status=outcome.status,
            inputs=self.inputs,
            assumed_inputs=self.assumed_inputs,
            attempt=self.attempt,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=finished_at,
            usage=outcome.usage,
            error=outcome.error,
            error_type=outcome.error_type,
            owner=self.owner,
            context_id=self.context_id,
            webhooks=self.webhooks,
            human_input=self.human_input,
            outputs=outcome.outputs,
            raw_result=outcome.raw_result,
            tasks=outcome.tasks,
            worker=self.worker,
            metadata=self.metadata,
            batch_id=self.batch_id,
            priority=self.priority,
            not_before=self.not_before,
            end_user=self.end_user,
            schedule_id=self.schedule_id,
            due_at=self.due_at,
        )


class StalledRun(NamedTuple):
    """A run in flight that no worker holds. `attempt` counts the attempts that have begun,
    `failed_attempts` those of them whose worker was lost.
    """

    run_id: UUID
    attempt: int
    failed_attempts: int
    owner: str
    crew: str
    priority: int = 0
    end_user: str = ""


class DispatchedRun(NamedTuple):
    """A run that waits for a slot, with all that decides about its turn."""

    run_id: UUID
    owner: str
    crew: str
    priority: int = 0
    end_user: str = ""

    @classmethod
    def of(cls, run: Run | StalledRun) -> Self:
        """The same run."""
        return cls(run.run_id, run.owner, run.crew, run.priority, run.end_user)


class LeaseHolder(NamedTuple):
    """A process that holds leases: its worker's name, its runs, and when its last lease ends."""

    worker: str
    runs: int
    lease_until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    """A process that executes runs, as it was when it was last seen.

    `crews` maps the names of its crews to their fingerprints. While it `is_draining`, it claims no
    more runs, and it ends once its runs have ended.
    """

    worker: str
    host: str
    pid: int
    version: str
    crews: Mapping[str, str]
    slots: int
    free_slots: int
    started_at: datetime
    last_seen_at: datetime
    is_draining: bool


QueueReason = Literal["not_before", "no_worker", "no_slot"]
"""Why a run is queued. Its time is in the future, no live worker has its crew, or those that have
it have no free slot.
"""


@dataclass(frozen=True, slots=True)
class ReviewDecision:
    """A human's decision on the output that a run awaits a review of.

    `task` None stands for the awaited task, whatever its name. `webhooks` replace those of the
    same kinds.
    """

    run_id: UUID
    task: str | None
    feedback: str
    approve: bool
    webhooks: Webhooks = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """The runs that a list holds; no `statuses` stand for all of them.

    `created_from` is inclusive, `created_before` is not. A run has all of `metadata`, and perhaps
    more. `cost_from` and `cost_to` are in nano-dollars. `seconds_from` and `seconds_to` bound the
    time from the start of the last attempt to the end of a settled run. They are inclusive, too.
    """

    run_ids: Sequence[UUID] = ()
    owner: str | None = None
    end_user: str | None = None
    crew: str | None = None
    statuses: Sequence[RunStatus] = ()
    error_type: str | None = None
    cost_from: int | None = None
    cost_to: int | None = None
    seconds_from: float | None = None
    seconds_to: float | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    idempotency_key: str | None = None
    batch_id: UUID | None = None
    schedule_id: UUID | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunPage:
    """Runs, newest first. `next_cursor` requests the page after them; None on the last page."""

    runs: Sequence[ListedRun]
    next_cursor: str | None


class AcceptedBatch(NamedTuple):
    """The batch that stands for a request: a new one, or an earlier one with the same key.

    The ids of its runs are in the order of their inputs.
    """

    batch_id: UUID
    run_ids: Sequence[UUID]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The runs of one crew that one request has submitted, as they stand.

    `counts` has a number for each status. `finished_at` is None until all runs are settled.
    """

    batch_id: UUID
    crew: str
    counts: Mapping[RunStatus, int]
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Batches, newest first. `next_cursor` requests the page after them; None on the last page."""

    batches: Sequence[Batch]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageFilter:
    """The usage to add up: that of days (UTC) from `from_day` to `to_day`, both included.

    `key` is the id of a key; '' stands for runs without one.
    """

    from_day: date
    to_day: date
    crew: str | None = None
    key: str | None = None
    model: str | None = None


USAGE_COUNTS: Final = (
    "runs",
    "calls",
    "unpriced_calls",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
)
"""The counts of a `UsageRow`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """The usage of a group of runs; `groups` names its day, crew, key and model, as requested.

    `cost` is in nano-dollars, that of the calls with a price; None if no call has one.
    """

    groups: Mapping[str, Any]
    runs: int
    calls: int
    unpriced_calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: int | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one event to one of a run's webhooks, as it stands.

    `role` is the webhook's kind, `attempts` counts those that have begun. `due_at` is the time of
    the next attempt; None when there is none. `last_result` is the HTTP status of the last attempt,
    or a short text on why there was no response.
    """

    run_id: UUID
    seq: int
    role: WebhookKind
    event: str
    host: str
    status: DeliveryStatus
    attempts: int
    due_at: datetime | None
    last_result: str | None
    created_at: datetime
    attempted_at: datetime | None

    @property
    def id(self) -> str:
        """The `webhook-id` of all its attempts."""
        return webhook_id(self.run_id, self.seq, self.role)


MAX_COUNTED_REVIEWS: Final = 100
"""How many runs that wait for a human are counted at most."""

MAX_COUNTED_DELIVERIES: Final = 10_000
"""How many pending deliveries a backlog counts at most."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """The runs that have not ended, by status, and the pending deliveries of webhooks."""

    runs: Mapping[RunStatus, int]
    deliveries: int
    oldest_delivery_seconds: float


def output_path(run_id: UUID, name: str) -> str:
    """The path of a task's output in the API."""
    return f"/api/runs/{run_id}/outputs/{quote(name, safe='')}"


def webhook_id(run_id: UUID, seq: int, role: str) -> str:
    """The `webhook-id` of a delivery: the same for every attempt, another for any other event."""
    return f"msg_{run_id.hex}_{seq}" + ("" if role == "run" else f"_{role}")
