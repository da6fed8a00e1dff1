"""Typed records of schedules, and their errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from app.runs import RunError, RunOptions, ScheduledRun, webhooks_at

MAX_TIMES: Final = 100
"""How many of its next times a schedule shows at most."""

MAX_SCHEDULES: Final = 1000
"""How many schedules an owner has at most."""

MAX_NAME_CHARACTERS: Final = 100


class Misfire(StrEnum):
    """The rule for due times that have passed by more than a minute, as after an outage.

    They begin no run, one run for the last of them, or a run each, for the last 20 at most.
    """

    SKIP = "skip"
    RUN_ONCE = "run_once"
    RUN_ALL = "run_all"


class Overlap(StrEnum):
    """The rule for a due time while an earlier run of the schedule has not ended.

    Another run begins, none begins, one begins when the earlier run has ended, or the earlier run
    is cancelled first.
    """

    ALLOW = "allow"
    SKIP = "skip"
    QUEUE = "queue"
    CANCEL_PREVIOUS = "cancel_previous"


class UnknownSchedule(RunError):
    """There is no such schedule, or it is another owner's."""

    def __init__(self, schedule_id: UUID) -> None:
        super().__init__(f"there is no schedule {schedule_id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as it stands.

    `next_due` is None while the schedule is paused, or if it has no further time. `waits`: the due
    time has passed, and its run waits for the end of an earlier one. `last_due` is the last time
    for which a run was submitted. `last_error` says why the last due time has no run.
    """

    schedule_id: UUID
    name: str
    crew: str
    inputs: dict[str, Any]
    cron: str
    time_zone: str
    misfire: Misfire
    overlap: Overlap
    created_at: datetime
    owner: str = ""
    end_user: str = ""
    address: str | None = None
    priority: int = 0
    webhook_url: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False
    waits: bool = False
    next_due: datetime | None = None
    last_due: datetime | None = None
    last_error: str | None = None

    def options(self, due_at: datetime | None) -> RunOptions:
        """The options of its run for a due time; None for a run that is requested by hand."""
        return RunOptions(
            webhooks=webhooks_at(self.webhook_url),
            metadata=self.metadata,
            priority=self.priority,
            scheduled=ScheduledRun(self.schedule_id, due_at),
        )


@dataclass(frozen=True, slots=True)
class SchedulePage:
    """Schedules, newest first. `next_cursor` requests the page after them; None on the last."""

    schedules: Sequence[Schedule]
    next_cursor: str | None
