"""The results of the output store's methods."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from storage.errors import StorageError
from storage.keys import OutputKey


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """A written output."""

    key: OutputKey
    size_bytes: int
    sha256: str
    """Of the UTF-8 bytes, in hex."""


@dataclass(frozen=True, slots=True)
class FoundOutput:
    """An output in a listing. A listing has no SHA-256: only a read computes it."""

    key: OutputKey
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """The failures of a delete."""

    failed: Mapping[OutputKey, StorageError] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.failed


@dataclass(frozen=True, slots=True)
class Usage:
    """The amount of stored outputs."""

    count: int
    size_bytes: int
    oldest_age_seconds: float | None
    """None when nothing is stored."""
    free_bytes: int | None
    """None where the backend does not know."""
    unreachable: tuple[str, ...] = ()
    """Members of a chain that can't be reached, and so are not counted."""


class SweepOutcome(StrEnum):
    """The outcome of a sweep in a location. Unless it is `DONE`, nothing was removed there."""

    DONE = "done"
    ALREADY_RUNNING = "a sweep is running already"
    NOT_OURS = "it belongs to another installation"
    RUNS_UNKNOWN = "the outputs that are still needed are unknown"
    UNREACHABLE = "it can't be reached"


@dataclass(frozen=True, slots=True)
class SweepReport:
    """The work of a sweep, summed over all locations of the store."""

    removed: int = 0
    """Outputs, and unfinished files of dead writers."""
    removed_bytes: int = 0
    kept: int = 0
    """Outputs beyond the age limit that their runs still need."""
    failed: int = 0
    """Outputs that could not be removed. The next sweep tries again."""
    skipped: Mapping[str, SweepOutcome] = field(default_factory=dict)
    """The locations in which nothing was removed, and the reason."""

    @property
    def outcome(self) -> SweepOutcome:
        """`DONE` when no location was skipped, else the reason of the first that was."""
        return next(iter(self.skipped.values()), SweepOutcome.DONE)


@dataclass(slots=True)
class Counters:
    """Totals of a store since it was made, for metrics. They only grow."""

    outputs_persisted: int = 0
    bytes_persisted: int = 0
    persists_failed: int = 0
    outputs_read: int = 0
    reads_retried: int = 0
    reads_failed: int = 0
    outputs_deleted: int = 0
    """Deletes by key that did not fail, whether or not the output existed."""
    deletes_failed: int = 0
    """Deletes by key that failed; `cleanup_failures` includes them."""
    sweeps: dict[SweepOutcome, int] = field(default_factory=dict)
    """Sweeps by the outcome of the store: that of the first location that was skipped."""
    outputs_swept: int = 0
    bytes_swept: int = 0
    cleanup_failures: int = 0
