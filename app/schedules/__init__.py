"""Schedules: runs that begin at the times of a cron expression, each time exactly once.

Entry points (`app.api`, `app.cli`) import from here; only the composition root imports the parts.
"""

from app.schedules.callers import OwnerGone
from app.schedules.records import (
    MAX_TIMES,
    Misfire,
    Overlap,
    Schedule,
    SchedulePage,
    UnknownSchedule,
)
from app.schedules.service import ScheduleService
from app.schedules.times import description

__all__ = [
    "MAX_TIMES",
    "Misfire",
    "Overlap",
    "OwnerGone",
    "Schedule",
    "SchedulePage",
    "ScheduleService",
    "UnknownSchedule",
    "description",
]
