"""What the output store answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from storage.errors import StorageError
from storage.keys import OutputKey


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """An output as it was written."""

    key: OutputKey
    size_bytes: int
    sha256: str
    """Of the UTF-8 bytes, in hex."""


@dataclass(frozen=True, slots=True)
class FoundOutput:
    """An output as a listing shows it; its SHA-256 is known only to those who read it."""

    key: OutputKey
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What a delete left undone."""

    failed: Mapping[OutputKey, StorageError] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return not self.failed


@dataclass(frozen=True, slots=True)
class Usage:
    """What is stored now."""

    count: int
    size_bytes: int
    oldest_age_seconds: float | None
    """None when nothing is stored."""
    free_bytes: int | None
    """None where the backend does not know."""
    unreachable: tuple[str, ...] = ()
    """Members of a chain that could not be asked, and so are not counted in."""


class SweepOutcome(StrEnum):
    """How a sweep went in a location; with any but `DONE`, nothing was removed there."""

    DONE = "done"
    ALREADY_RUNNING = "a sweep is running already"
    NOT_OURS = "it belongs to another installation"
    RUNS_UNKNOWN = "which outputs are still needed could not be asked"
    UNREACHABLE = "it could not be asked"


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did, in all locations of the store together."""

    removed: int = 0
    """Outputs, and what dead writers left behind."""
    removed_bytes: int = 0
    kept: int = 0
    """Outputs over the age limit whose runs still need them."""
    failed: int = 0
    """Could not be removed; the next sweep tries again."""
    skipped: Mapping[str, SweepOutcome] = field(default_factory=dict)
    """The locations that were left alone, and why."""

    @property
    def outcome(self) -> SweepOutcome:
        """`DONE` when no location was left alone, else why the first of them was."""
        return next(iter(self.skipped.values()), SweepOutcome.DONE)


@dataclass(slots=True)
class Counters:
    """What a store has done since it was made, for metrics: these only grow."""

    outputs_persisted: int = 0
    bytes_persisted: int = 0
    persists_failed: int = 0
    outputs_read: int = 0
    reads_retried: int = 0
    reads_failed: int = 0
    outputs_deleted: int = 0
    """Deletes asked for by key that did not fail, whether or not there was something."""
    outputs_swept: int = 0
    bytes_swept: int = 0
    cleanup_failures: int = 0
