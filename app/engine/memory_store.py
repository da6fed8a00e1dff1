"""Memories of runs, and the contract of their storage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class MemoryEntry:
    """One memory, as CrewAI defines it.

    `space` separates the storages that a crew names, such as `Memory(storage="notes")`. Datetimes
    are naive and in UTC, as CrewAI's. `vector` is the packed float32 embedding of the content;
    None if there is none.
    """

    id: str
    space: str
    content: str
    scope: str
    categories: list[str]
    metadata: dict[str, Any]
    importance: float
    created_at: datetime
    last_accessed: datetime
    source: str | None
    private: bool
    vector: bytes | None


@dataclass(slots=True)
class MemoryChanges:
    """The changes of one run: entries to insert or replace, and to delete or touch by id."""

    saved: dict[str, MemoryEntry] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    touched: dict[str, datetime] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.saved or self.deleted or self.touched)


class MemoryStore(Protocol):
    """The stored memories that one run may read and change. Used on the engine's event loop."""

    async def load(self) -> Sequence[MemoryEntry]:
        """All entries, oldest first."""
        ...

    async def apply(self, changes: MemoryChanges) -> None:
        """Store the changes of the run, all or none. Changes to unknown ids have no effect."""
        ...


def matches(metadata: Mapping[str, Any], required: Mapping[str, Any] | None) -> bool:
    """Whether metadata have all required values."""
    return all(metadata.get(name) == value for name, value in (required or {}).items())
