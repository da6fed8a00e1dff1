"""The run: its row and its states, what happened in it, and who was told."""

from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Boolean, Date, Index, Integer, String, Text, Uuid, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, UtcDateTime


class RunStatus(StrEnum):
    """The states of a run, stored and shown in these very words."""

    QUEUED = "queued"
    RUNNING = "running"
    AWAITING_HUMAN = "awaiting_human"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


# In a worker's hands, or waiting for one.
CARRIED = (RunStatus.QUEUED, RunStatus.RUNNING)
UNSETTLED = (*CARRIED, RunStatus.AWAITING_HUMAN)

IN_FLIGHT = "status IN ('queued', 'running')"
"""The runs that count as in flight, in SQL: partial indexes need the very words."""

_OWNED_IN_FLIGHT = text(f"owner != '' AND {IN_FLIGHT}")
_ADDRESSED_IN_FLIGHT = text(f"address IS NOT NULL AND {IN_FLIGHT}")


class DeliveryStatus(StrEnum):
    """The states of a webhook's delivery, stored and shown in these very words."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class UserRun(Base):
    """One run of one crew for one user: the truth about it."""

    __tablename__ = "user_runs"
    __table_args__ = (
        Index("user_runs_unsettled", "status", "lease_until"),
        Index("user_runs_idempotency_key", "owner", "idempotency_key", unique=True),
        Index("user_runs_newest", "created_at", "run_id"),
        Index("user_runs_newest_of_owner", "owner", "created_at", "run_id"),
        Index("user_runs_of_worker", "worker", "status"),
        Index(
            "user_runs_in_flight_of_owner",
            "owner",
            sqlite_where=_OWNED_IN_FLIGHT,
            postgresql_where=_OWNED_IN_FLIGHT,
        ),
        Index(
            "user_runs_in_flight_of_address",
            "address",
            sqlite_where=_ADDRESSED_IN_FLIGHT,
            postgresql_where=_ADDRESSED_IN_FLIGHT,
        ),
    )

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    # Nobody is '', not NULL: for a unique index two NULLs are different.
    owner: Mapped[str] = mapped_column(String(40), server_default="")
    # Only of callers with a quota, and only until the run is settled.
    address: Mapped[str | None] = mapped_column(String(64))
    crew: Mapped[str] = mapped_column(String(100))
    status: Mapped[str] = mapped_column(String(20))
    inputs: Mapped[dict[str, Any]] = mapped_column(JSON)
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
    webhooks: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    meta: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    context_id: Mapped[str | None] = mapped_column(String(255))
    human_input: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    attempt: Mapped[int] = mapped_column(Integer)
    pauses: Mapped[int] = mapped_column(Integer, server_default="0")
    worker: Mapped[str | None] = mapped_column(String(64))
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RunEvent(Base):
    """Something that happened in a run and is worth telling again: few for each run.

    `seq` grows with time within a run; each attempt has a range of its own.
    """

    __tablename__ = "run_events"

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    at: Mapped[datetime] = mapped_column(UtcDateTime)


class TokenWatch(Base):
    """A process whose watchers want the words of a run that another carries, until a time.

    `watcher` names the process as `worker` does in the run's row.
    """

    __tablename__ = "token_watches"

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    watcher: Mapped[str] = mapped_column(String(64), primary_key=True)
    until: Mapped[datetime] = mapped_column(UtcDateTime)


class RelayedTokens(Base):
    """Words of a model on their way to another process, which takes them out.

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
    """What a caller with a quota, a key or an address, has used of a day (UTC)."""

    __tablename__ = "caller_usage"

    caller: Mapped[str] = mapped_column(String(64), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    runs: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)


class WebhookDelivery(Base):
    """An event that one of a run's webhooks is told of: it names the stored event, which holds the
    rest, and the webhook by its role.

    `attempts` counts those begun, and each later write names its own, as writes to runs do.
    While an attempt is under way, `due_at` is when another may begin if nothing more is heard.
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
