"""CrewAI's memory storage, in the run: searches and lists as LanceDB's does in CrewAI.

CrewAI's own is one folder for all runs, with a lock file for each process.
"""

import threading
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
from crewai.memory.types import MemoryRecord, ScopeInfo

from app.engine.memory.remembered import RunMemory, current_memory
from app.engine.memory_store import MemoryEntry, matches
from app.engine.runtime.waiting import offload

_DEFAULTS = ("lancedb", "qdrant-edge")


class StorageOfRuns:
    """A storage that a crew names: in a run, what the run remembers; outside of runs, LanceDB's.

    The crew may be built outside of the run that uses it, and may share the object with other runs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._outside: Any = None
        self._opening = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "StorageOfRuns":
        return StorageOfRuns(self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        memory = current_memory()
        storage = self._lancedb() if memory is None else _RunStorage(self._name, memory, self)
        return getattr(storage, name)

    def see_all(self) -> None:
        """See all that other memories of the run have saved."""
        if (memory := current_memory()) is not None:
            memory.see_all(self)

    def _lancedb(self) -> Any:
        from crewai.memory.storage.lancedb_storage import LanceDBStorage  # noqa: PLC0415

        with self._opening:
            if self._outside is None:
                self._outside = LanceDBStorage(None if self._name in _DEFAULTS else self._name)
        return self._outside


class _RunStorage:
    """CrewAI's contract of a storage over the memories of one run, as `viewer` sees them."""

    def __init__(self, name: str, memory: RunMemory, viewer: StorageOfRuns) -> None:
        self._name = name
        self._memory = memory
        self._viewer = viewer

    def save(self, records: list[MemoryRecord]) -> None:
        self._memory.save(map(self._entry, records), self._viewer)

    def update(self, record: MemoryRecord) -> None:
        entry = self._entry(record)
        known = self._memory.space(self._name).entries.get(record.id)
        if entry.vector is None and known is not None:
            entry = self._entry(record, known.vector)
        self._memory.save([entry], self._viewer)

    def touch_records(self, record_ids: list[str]) -> None:
        self._memory.touch(self._name, record_ids, _now())

    def get_record(self, record_id: str) -> MemoryRecord | None:
        entry = self._memory.space(self._name).entries.get(str(record_id))
        return None if entry is None else _record(entry)

    def search(
        self,
        query_embedding: list[float],
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        metadata_filter: dict[str, Any] | None = None,
        limit: int = 10,
        min_score: float = 0.0,
    ) -> list[tuple[MemoryRecord, float]]:
        with self._memory.lock:
            space = self._memory.space(self._name)
            ids, distances = space.distances(np.asarray(query_embedding, np.float32))
            nearest = np.argsort(distances, kind="stable")
            scope = _prefix(scope_prefix)
            of_scope = [
                (space.entries[ids[i]], float(distances[i]))
                for i in nearest
                if space.entries[ids[i]].scope.startswith(scope)
                and self._memory.sees(self._viewer, ids[i])
            ]
        # As in CrewAI, filters apply to three times as many entries as requested.
        candidates = of_scope[: limit * 3 if categories or metadata_filter else limit]
        scored = [
            (_record(entry), 1 / (1 + distance))
            for entry, distance in candidates
            if _has_any(entry, categories) and matches(entry.metadata, metadata_filter)
        ]
        return [(record, score) for record, score in scored if score >= min_score][:limit]

    def delete(
        self,
        scope_prefix: str | None = None,
        categories: list[str] | None = None,
        record_ids: list[str] | None = None,
        older_than: datetime | None = None,
        metadata_filter: dict[str, Any] | None = None,
    ) -> int:
        """Delete the entries that match all arguments; by ids, those alone unless there is more.

        CrewAI's also deletes all entries of the scope `/` with those of any other.
        """
        if record_ids and not (categories or metadata_filter):
            return self._memory.delete(self._name, record_ids)
        found = [
            entry.id
            for entry in self._in_scope(scope_prefix)
            if _has_any(entry, categories)
            and matches(entry.metadata, metadata_filter)
            and (older_than is None or entry.created_at < older_than)
        ]
        return self._memory.delete(self._name, found)

    def list_records(
        self, scope_prefix: str | None = None, limit: int = 200, offset: int = 0
    ) -> list[MemoryRecord]:
        """The records of a scope, newest first."""
        entries = self._in_scope(scope_prefix)
        entries.sort(key=lambda entry: entry.created_at, reverse=True)
        return list(map(_record, entries[offset : offset + limit])) if offset >= 0 else []

    def get_scope_info(self, scope: str) -> ScopeInfo:
        entries = self._in_scope(scope)
        created = [entry.created_at for entry in entries]
        return ScopeInfo(
            path=scope.rstrip("/") or "/",
            record_count=len(entries),
            categories=sorted({name for entry in entries for name in entry.categories}),
            oldest_record=min(created, default=None),
            newest_record=max(created, default=None),
            child_scopes=_children(entries, _prefix(scope)),
        )

    def list_scopes(self, parent: str = "/") -> list[str]:
        return _children(self._in_scope(parent), parent.rstrip("/"))

    def list_categories(self, scope_prefix: str | None = None) -> dict[str, int]:
        counts: dict[str, int] = {}
        for entry in self._in_scope(scope_prefix):
            for name in entry.categories:
                counts[name] = counts.get(name, 0) + 1
        return counts

    def count(self, scope_prefix: str | None = None) -> int:
        return len(self._in_scope(scope_prefix))

    def reset(self, scope_prefix: str | None = None) -> None:
        prefix = _prefix(scope_prefix)
        entries = self._in_scope(scope_prefix)
        # CrewAI's compares texts here: a scope and what is below it, no scope beside it.
        found = [e.id for e in entries if e.scope == prefix or e.scope.startswith(f"{prefix}/")]
        self._memory.delete(self._name, found if prefix else [entry.id for entry in entries])

    async def asave(self, records: list[MemoryRecord]) -> None:
        self.save(records)

    async def asearch(self, *args: Any, **options: Any) -> list[tuple[MemoryRecord, float]]:
        return self.search(*args, **options)

    async def adelete(self, *args: Any, **options: Any) -> int:
        return self.delete(*args, **options)

    def _in_scope(self, scope: str | None) -> list[MemoryEntry]:
        prefix = _prefix(scope)
        with self._memory.lock:
            entries = list(self._memory.space(self._name).entries.values())
        return [
            entry
            for entry in entries
            if entry.scope.startswith(prefix) and self._memory.sees(self._viewer, entry.id)
        ]

    def _entry(self, record: MemoryRecord, vector: bytes | None = None) -> MemoryEntry:
        if record.embedding:
            vector = np.asarray(record.embedding, np.float32).tobytes()
        return MemoryEntry(
            id=record.id,
            space=self._name,
            content=record.content,
            scope=record.scope,
            categories=list(record.categories),
            metadata=dict(record.metadata),
            importance=record.importance,
            created_at=record.created_at,
            last_accessed=record.last_accessed,
            source=record.source,
            private=record.private,
            vector=vector,
        )


class OffLoop:
    """A storage that the crew passes itself: calls on the event loop go to a thread."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        if not callable(found):
            return found

        def call(*args: Any, **options: Any) -> Any:
            return offload(lambda: found(*args, **options))

        return call if name in _BLOCKING else found


_BLOCKING = frozenset(
    {
        "save",
        "update",
        "touch_records",
        "get_record",
        "search",
        "delete",
        "list_records",
        "get_scope_info",
        "list_scopes",
        "list_categories",
        "count",
        "reset",
    }
)


def off_loop(storage: Any) -> Any:
    """A storage whose calls never block the event loop."""
    return storage if isinstance(storage, StorageOfRuns | OffLoop) else OffLoop(storage)


def _record(entry: MemoryEntry) -> MemoryRecord:
    # Without validation and without the embedding, which only `update` needs: it keeps the known.
    return MemoryRecord.model_construct(
        id=entry.id,
        content=entry.content,
        scope=entry.scope,
        categories=list(entry.categories),
        metadata=dict(entry.metadata),
        importance=entry.importance,
        created_at=entry.created_at,
        last_accessed=entry.last_accessed,
        embedding=None,
        source=entry.source,
        private=entry.private,
    )


def _prefix(scope: str | None) -> str:
    """A scope as the beginning of the scopes below it; empty for all."""
    path = (scope or "").rstrip("/")
    return path if not path or path.startswith("/") else f"/{path}"


def _children(entries: Iterable[MemoryEntry], parent: str) -> list[str]:
    below = f"{parent}/"
    names = {
        entry.scope.removeprefix(below).split("/", 1)[0]
        for entry in entries
        if entry.scope.startswith(below)
    }
    return sorted(f"{below}{name}" for name in names if name)


def _has_any(entry: MemoryEntry, categories: list[str] | None) -> bool:
    return not categories or any(name in entry.categories for name in categories)


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)
