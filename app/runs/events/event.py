"""Events of runs: their types, their numbers, and the record of one."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Self
from uuid import UUID

from app.runs.records import RunStatus


class EventType(StrEnum):
    """The types of events, stored and sent in these very words."""

    RUN_QUEUED = "run.queued"
    RUN_RUNNING = "run.running"
    RUN_AWAITING_HUMAN = "run.awaiting_human"
    RUN_RESUMED = "run.resumed"
    RUN_SUCCEEDED = "run.succeeded"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"
    TASK_STARTED = "task.started"
    TASK_FINISHED = "task.finished"
    TASK_STEP = "task.step"
    TASK_TOKENS = "task.tokens"

    @classmethod
    def of_status(cls, status: RunStatus) -> "EventType":
        """The event of a run that enters this state."""
        return cls(f"run.{status}")


SETTLING: Final = frozenset(
    {EventType.RUN_SUCCEEDED, EventType.RUN_FAILED, EventType.RUN_CANCELLED}
)
"""The types of which one is the last event of every run."""


class EventSeq(int):
    """The number of a stored event in its run. It grows with time.

    Each attempt has a range of numbers of its own. The first is for `run.running`; the last three
    are for the pause of the attempt, its resumption, and the end of the run. A run that was never
    claimed uses the range of attempt 0.
    """

    __slots__ = ()

    @classmethod
    def first(cls, attempt: int) -> Self:
        """The number of the attempt's start."""
        return cls(attempt * _PER_ATTEMPT)

    @classmethod
    def paused(cls, attempt: int) -> Self:
        """The number of the pause that ends the attempt."""
        return cls(cls.last(attempt) - 2)

    @classmethod
    def resumed(cls, attempt: int) -> Self:
        """The number of the resumption of the paused attempt."""
        return cls(cls.last(attempt) - 1)

    @classmethod
    def last(cls, attempt: int) -> Self:
        """The number of the run's end, if it ends with this attempt."""
        return cls((attempt + 1) * _PER_ATTEMPT - 1)

    @property
    def attempt(self) -> int:
        """The attempt to whose range this number belongs."""
        return self // _PER_ATTEMPT

    def next(self) -> Self:
        """The next number of the attempt."""
        return type(self)(self + 1)


_PER_ATTEMPT: Final = 100_000


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a run; `seq` is None for tokens, which are never stored as events."""

    run_id: UUID
    seq: EventSeq | None
    type: EventType
    data: dict[str, Any]
    at: datetime

    @property
    def settles(self) -> bool:
        """Whether this is the last event of the run."""
        return self.type in SETTLING
