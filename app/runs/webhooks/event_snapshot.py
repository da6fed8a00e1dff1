"""The event that a webhook receives, with its run."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class EventSnapshot:
    """An event, with the row of its run as it is when the event is sent."""

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
    metadata: Mapping[str, str] | None
