"""The tables of runs, events, calls, deliveries to webhooks, tokens under way, usage and cost."""

from collections.abc import Callable
from datetime import date, datetime
from types import NoneType
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    BindParameter,
    Boolean,
    Date,
    Dialect,
    Double,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    Uuid,
    bindparam,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.budgets import Budget
from app.db import Base, UtcDateTime
from app.runs.human_input import HumanInput
from app.runs.records import Webhook, WebhookKind, Webhooks

# The text of the partial indexes: PostgreSQL compares it literally with that of a query.
IN_FLIGHT_SQL: Final = "status IN ('queued', 'running')"
"""The condition that a run is in flight, in SQL."""

RUN_IDS: Final[BindParameter[Any]] = bindparam("run_ids", expanding=True)
"""The ids of runs in a constant statement, for `column.in_`.

SQLAlchemy prepares a statement of many columns in 0.5 ms, but a constant one only once."""

_HAS_METADATA = text("run_metadata IS NOT NULL")
_OF_AN_END_USER = text("end_user != ''")
_IN_A_BATCH = text("batch_id IS NOT NULL")
_HAS_ERROR = text("error_type IS NOT NULL")
_OF_A_SCHEDULE = text("schedule_id IS NOT NULL")
_OWNED_IN_FLIGHT = text(f"owner != '' AND {IN_FLIGHT_SQL}")
_OF_AN_END_USER_IN_FLIGHT = text(f"end_user != '' AND {IN_FLIGHT_SQL}")
_ADDRESSED_IN_FLIGHT = text(f"address IS NOT NULL AND {IN_FLIGHT_SQL}")


class MsgspecJson(TypeDecorator[Any]):
    """A JSON column that is read as `kind`. NULL is read as what `null()` gives.

    A dict without items is stored as NULL.
    """

    impl = JSON
    cache_ok = True

    def __init__(self, kind: Any, null: Callable[[], object] = NoneType) -> None:
        super().__init__(none_as_null=True)
        self.kind = kind
        self.null = null

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return value or None

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return self.null()
        return msgspec.convert(value, self.kind, str_keys=True, strict=False)


class UserRun(Base):
    """One run of one crew for one user: the only authority over it."""

    __tablename__ = "user_runs"
    __table_args__ = (
        Index("user_runs_unsettled", "status", "lease_until"),
        Index("user_runs_idempotency_key", "owner", "idempotency_key", unique=True),
        Index("user_runs_newest", "created_at", "run_id"),
        Index("user_runs_newest_of_owner", "owner", "created_at", "run_id"),
        Index(
            "user_runs_newest_of_end_user",
            "owner",
            "end_user",
            "created_at",
            "run_id",
            sqlite_where=_OF_AN_END_USER,
            postgresql_where=_OF_AN_END_USER,
        ),
        Index("user_runs_of_worker", "worker", "status"),
        Index(
            "user_runs_of_batch",
            "batch_id",
            sqlite_where=_IN_A_BATCH,
            postgresql_where=_IN_A_BATCH,
        ),
        Index(
            "user_runs_batches_of_owner",
            "owner",
            "batch_id",
            sqlite_where=_IN_A_BATCH,
            postgresql_where=_IN_A_BATCH,
        ),
        Index(
            "user_runs_newest_with_metadata",
            "created_at",
            "run_id",
            sqlite_where=_HAS_METADATA,
            postgresql_where=_HAS_METADATA,
        ),
        Index(
            "user_runs_newest_with_error",
            "error_type",
            "created_at",
            "run_id",
            sqlite_where=_HAS_ERROR,
            postgresql_where=_HAS_ERROR,
        ),
        Index(
            "user_runs_of_schedule",
            "schedule_id",
            "due_at",
            unique=True,
            sqlite_where=_OF_A_SCHEDULE,
            postgresql_where=_OF_A_SCHEDULE,
        ),
        Index(
            "user_runs_in_flight_of_owner",
            "owner",
            sqlite_where=_OWNED_IN_FLIGHT,
            postgresql_where=_OWNED_IN_FLIGHT,
        ),
        Index(
            "user_runs_in_flight_of_end_user",
            "end_user",
            sqlite_where=_OF_AN_END_USER_IN_FLIGHT,
            postgresql_where=_OF_AN_END_USER_IN_FLIGHT,
        ),
        Index(
            "user_runs_in_flight_of_address",
            "address",
            sqlite_where=_ADDRESSED_IN_FLIGHT,
            postgresql_where=_ADDRESSED_IN_FLIGHT,
        ),
    )

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    # '' without an API key, not NULL: for a unique index two NULLs are different.
    owner: Mapped[str] = mapped_column(String(40), server_default="")
    # The client's own id of its user; '' where it named none.
    end_user: Mapped[str] = mapped_column(String(200), server_default="")
    # Only of callers with a quota, and only until the run is settled.
    address: Mapped[str | None] = mapped_column(String(64))
    crew: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(20))
    inputs: Mapped[dict[str, Any]] = mapped_column(JSON)
    # The inputs that were not given and have their defaults; NULL for none.
    assumed_inputs: Mapped[tuple[str, ...]] = mapped_column(
        MsgspecJson(tuple[str, ...], null=tuple), nullable=True
    )
    # Texts of models are kept as JSON: PostgreSQL's text can't hold a NUL, JSON escapes it.
    outputs: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    raw_result: Mapped[str | None] = mapped_column(JSON(none_as_null=True))
    tasks: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    usage: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(Text)
    error_type: Mapped[str | None] = mapped_column(String(50))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    request_digest: Mapped[str | None] = mapped_column(String(64))
    stream: Mapped[bool | None] = mapped_column(Boolean)
    webhooks: Mapped[Webhooks | None] = mapped_column(
        MsgspecJson(dict[WebhookKind, Webhook], null=dict)
    )
    meta: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    context_id: Mapped[str | None] = mapped_column(String(255))
    batch_id: Mapped[UUID | None] = mapped_column(Uuid)
    priority: Mapped[int] = mapped_column(Integer, server_default="0")
    # Until then no worker holds the run, and its lease ends at this time.
    not_before: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Of a run that a schedule has submitted. `due_at` is NULL for a run that was requested by hand.
    schedule_id: Mapped[UUID | None] = mapped_column(Uuid)
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Not `metadata`, which SQLAlchemy reserves. NULL for none.
    run_metadata: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True))
    # The trace context of the request that submitted the run, as W3C Trace Context has it.
    traceparent: Mapped[str | None] = mapped_column(String(55))
    tracestate: Mapped[str | None] = mapped_column(String(512))
    human_input: Mapped[HumanInput | None] = mapped_column(MsgspecJson(HumanInput))
    budget: Mapped[Budget | None] = mapped_column(MsgspecJson(Budget))
    # Encrypted until the run is settled; empty if they are not stored; NULL for none.
    secrets: Mapped[bytes | None] = mapped_column(LargeBinary)
    attempt: Mapped[int] = mapped_column(Integer)
    pauses: Mapped[int] = mapped_column(Integer, server_default="0")
    worker: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RunEvent(Base):
    """A stored event of a run: few for each run.

    `seq` is an EventSeq: it grows with time within a run.
    """

    __tablename__ = "run_events"

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class RunCalls(Base):
    """Calls of one attempt to models and tools that were stored together.

    `calls` is JSON, `contents` their compressed texts. `content_bytes` is the size of the texts.
    """

    __tablename__ = "run_calls"

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    calls: Mapped[bytes] = mapped_column(LargeBinary)
    contents: Mapped[bytes | None] = mapped_column(LargeBinary)
    content_bytes: Mapped[int] = mapped_column(Integer, server_default="0")


class TokenSubscription(Base):
    """A process that subscribes, until a time, to the tokens of a run that another executes.

    `watcher` names the subscribed process as `worker` does in the run's row.
    """

    __tablename__ = "token_watches"

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    watcher: Mapped[str] = mapped_column(String(64), primary_key=True)
    until: Mapped[datetime] = mapped_column(UtcDateTime)


class RelayedTokens(Base):
    """Tokens of a model on their way to the process `watcher`, which deletes them as it reads.

    They follow the stored event `after_seq`; `number` grows with time.
    """

    __tablename__ = "passed_tokens"

    watcher: Mapped[str] = mapped_column(String(64), primary_key=True)
    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    after_seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class CallerUsage(Base):
    """The usage of a caller with a quota, a key or an address, on one day (UTC)."""

    __tablename__ = "caller_usage"

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    runs: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    # In nano-dollars, of calls made on this day; only for callers with a budget for a day.
    cost: Mapped[int] = mapped_column(BigInteger, server_default="0")


class CostReservation(Base):
    """The estimated cost, in nano-dollars, of a caller's model calls under way in one process.

    It counts while the process `worker` holds the lease of a running run.
    """

    __tablename__ = "cost_reservations"

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    worker: Mapped[str] = mapped_column(String(64), primary_key=True)
    amount: Mapped[int] = mapped_column(BigInteger)


class ModelPermitRow(Base):
    """Until when the requests and tokens of a model and key are spent, over all processes.

    `account` is a digest of the API key. Times are in seconds since the epoch.
    """

    __tablename__ = "model_permits"

    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    account: Mapped[str] = mapped_column(String(16), primary_key=True)
    requests_until: Mapped[float] = mapped_column(Double)
    tokens_until: Mapped[float] = mapped_column(Double)
    paused_until: Mapped[float] = mapped_column(Double)


class CrewSlotRow(Base):
    """A run that holds a slot of its crew, or waits for one since a time, in the process `worker`.

    Only crews with a limit have slots. A row counts until its time `until`, which the process
    renews.
    """

    __tablename__ = "crew_slots"

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    crew: Mapped[str] = mapped_column(String(100), index=True)
    worker: Mapped[str] = mapped_column(String(64))
    is_held: Mapped[bool] = mapped_column(Boolean)
    since: Mapped[datetime] = mapped_column(UtcDateTime)
    until: Mapped[datetime] = mapped_column(UtcDateTime)


class UsageTotal(Base):
    """The calls of an owner's runs of a crew to one model on one day (UTC), and their cost.

    `runs` counts the runs that called the model. The row with the model '' counts all runs that
    began on the day, and nothing else. `cost` is in nano-dollars.
    """

    __tablename__ = "usage_totals"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    owner: Mapped[str] = mapped_column(String(40), primary_key=True)
    crew: Mapped[str] = mapped_column(String(100), primary_key=True)
    model: Mapped[str] = mapped_column(String(200), primary_key=True)
    runs: Mapped[int] = mapped_column(BigInteger)
    calls: Mapped[int] = mapped_column(BigInteger)
    unpriced_calls: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    cached_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[int] = mapped_column(BigInteger)


class WorkerRow(Base):
    """A process that executes runs. It is lost if it has not renewed `alive_until`.

    `crews` maps the names of its crews to their fingerprints. While `is_draining`, it claims no
    more runs.
    """

    __tablename__ = "workers"

    # As in the rows of its runs.
    worker: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int] = mapped_column(Integer)
    version: Mapped[str] = mapped_column(String(40))
    crews: Mapped[dict[str, str]] = mapped_column(JSON)
    slots: Mapped[int] = mapped_column(Integer)
    free_slots: Mapped[int] = mapped_column(Integer)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    alive_until: Mapped[datetime] = mapped_column(UtcDateTime)
    is_draining: Mapped[bool] = mapped_column(Boolean)


class CrewDescriptionRow(Base):
    """A crew as processes must know it to accept runs of it: `CrewInfo` as JSON.

    The worker that started last with the crew has stored it. `last_seen_at` is a time, within an
    hour, at which a worker had the crew.
    """

    __tablename__ = "crew_descriptions"

    crew: Mapped[str] = mapped_column(String(100), primary_key=True)
    description: Mapped[dict[str, Any]] = mapped_column(JSON)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class WebhookDelivery(Base):
    """A delivery in the transactional outbox: the event `seq` for the webhook of kind `role`.

    The stored event holds the rest. `attempts` counts the attempts that have begun; it is the
    fencing token of later writes. While an attempt is under way, `due_at` is the end of its lease.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (Index("webhook_deliveries_due", "status", "due_at"),)

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    role: Mapped[str] = mapped_column(String(10), primary_key=True)
    event: Mapped[str] = mapped_column(String(40))
    host: Mapped[str] = mapped_column(String(300))
    status: Mapped[str] = mapped_column(String(20))
    attempts: Mapped[int] = mapped_column(Integer)
    due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_result: Mapped[str | None] = mapped_column(String(100))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    attempted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class StoredMemory(Base):
    """A memory of a crew's runs for one caller; see `app.engine.memory_store.MemoryEntry`.

    It belongs to an end user of an owner. Memories that all callers share have an owner that is no
    id of a key.
    """

    __tablename__ = "memories"
    __table_args__ = (Index("memories_last_accessed", "last_accessed"),)

    owner: Mapped[str] = mapped_column(String(40), primary_key=True)
    end_user: Mapped[str] = mapped_column(String(200), primary_key=True)
    crew: Mapped[str] = mapped_column(String(100), primary_key=True)
    memory_id: Mapped[str] = mapped_column(String(100), primary_key=True)
    space: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    scope: Mapped[str] = mapped_column(Text)
    categories: Mapped[list[str]] = mapped_column(JSON)
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    importance: Mapped[float] = mapped_column(Double)
    source: Mapped[str | None] = mapped_column(Text)
    private: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_accessed: Mapped[datetime] = mapped_column(UtcDateTime)
    vector: Mapped[bytes | None] = mapped_column(LargeBinary)
