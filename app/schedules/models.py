"""The table of schedules."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Boolean, Index, Integer, String, Text, Uuid
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, UtcDateTime
from app.runs.models import MsgspecJson


class ScheduleRow(Base):
    """A schedule: the only authority over its due times.

    A process leases a schedule that is due until `lease_until`, and submits its run. The
    transaction that inserts the run moves `next_due` on.
    """

    __tablename__ = "schedules"
    __table_args__ = (
        Index("schedules_due", "next_due"),
        Index("schedules_of_owner", "owner", "schedule_id"),
    )

    schedule_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    # '' without an API key, and without an end user, as in the rows of runs. `address` is that of
    # the client.
    owner: Mapped[str] = mapped_column(String(40), server_default="")
    end_user: Mapped[str] = mapped_column(String(200), server_default="")
    address: Mapped[str | None] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(100))
    crew: Mapped[str] = mapped_column(String(100))
    inputs: Mapped[dict[str, Any]] = mapped_column(JSON)
    cron: Mapped[str] = mapped_column(String(100))
    time_zone: Mapped[str] = mapped_column(String(64))
    misfire: Mapped[str] = mapped_column(String(20))
    overlap: Mapped[str] = mapped_column(String(20))
    priority: Mapped[int] = mapped_column(Integer)
    webhook_url: Mapped[str | None] = mapped_column(Text)
    # Not `metadata`, which SQLAlchemy reserves.
    run_metadata: Mapped[dict[str, str]] = mapped_column(
        MsgspecJson(dict[str, str], null=dict), nullable=True
    )
    paused: Mapped[bool] = mapped_column(Boolean)
    waits: Mapped[bool] = mapped_column(Boolean)
    next_due: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_due: Mapped[datetime | None] = mapped_column(UtcDateTime)
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
