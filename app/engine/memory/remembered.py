"""The memories of one run: read from the store on first use, and stored when the run ends."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from app.engine.memory_store import MemoryChanges, MemoryEntry, MemoryStore
from app.engine.runtime.context import current_run
from app.engine.runtime.waiting import wait_for
from app.projects import outside

_logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
_creating = threading.Lock()
_of_factory: contextvars.ContextVar["RunMemory | None"] = contextvars.ContextVar(
    "crew_capture_factory_memory", default=None
)


class RunMemory:
    """The memories that a run may use. Its threads and greenlets share them.

    A run sees the memories that were stored when it first used any, and its own changes. Its
    memories save at the same time, and compare what they save with what they see. Each sees its own
    saves, and those that others had made when it was last searched. So the order in which saves of
    others end changes nothing.
    """

    def __init__(self, store: MemoryStore | None) -> None:
        self._store = store
        self._spaces: dict[str, Space] = {}
        self._changes = MemoryChanges()
        self._loaded = store is None
        self._loading = asyncio.Lock()
        self._saves: dict[str, tuple[object, int]] = {}  # of new entries: who, and in which order
        self._seen: dict[object, int] = {}
        self.lock = threading.RLock()

    def space(self, name: str) -> "Space":
        """The memories of one storage that the crew names. Waits until they are loaded."""
        if not self._loaded:
            wait_for(self._load())
        with self.lock:
            return self._spaces.setdefault(name, Space())

    def see_all(self, viewer: object) -> None:
        """Let a storage see all that was saved before."""
        self._seen[viewer] = len(self._saves)

    def sees(self, viewer: object, id_: str) -> bool:
        """Whether a storage sees an entry."""
        saved_by, order = self._saves.get(id_, (viewer, 0))
        return saved_by is viewer or order < self._seen.get(viewer, 0)

    def save(self, entries: Iterable[MemoryEntry], viewer: object) -> None:
        for entry in entries:
            space = self.space(entry.space)
            if entry.id not in space.entries:
                self._saves.setdefault(entry.id, (viewer, len(self._saves)))
            space.put(entry)
            self._changes.saved[entry.id] = entry
            self._changes.deleted.discard(entry.id)

    def delete(self, space: str, ids: Iterable[str]) -> int:
        """The number of entries that existed and are deleted."""
        deleted = [id_ for id_ in ids if self.space(space).remove(id_)]
        for id_ in deleted:
            self._changes.saved.pop(id_, None)
            self._changes.touched.pop(id_, None)
            self._changes.deleted.add(id_)
        return len(deleted)

    def touch(self, space: str, ids: Iterable[str], at: datetime) -> None:
        for id_ in ids:
            if (entry := self.space(space).entries.get(id_)) is not None:
                self.space(space).entries[id_] = replace(entry, last_accessed=at)
                if id_ in self._changes.saved:
                    self._changes.saved[id_] = self.space(space).entries[id_]
                else:
                    self._changes.touched[id_] = at

    async def store(self) -> None:
        """Store the changes. A failure is logged: the run's result does not depend on it."""
        with self.lock:
            changes, self._changes = self._changes, MemoryChanges()
        if self._store is None or not changes:
            return
        try:
            await self._store.apply(changes)
        except Exception as error:
            _logger.warning("the memories of a run are not stored: %s", error)

    async def _load(self) -> None:
        async with self._loading:
            if self._loaded or self._store is None:
                return
            with outside():
                stored = await self._store.load()
            for entry in stored:
                self._spaces.setdefault(entry.space, Space()).put(entry)
            self._loaded = True


class Space:
    """Memories by id, and their embeddings as one matrix for exact search."""

    def __init__(self) -> None:
        self.entries: dict[str, MemoryEntry] = {}
        self._matrices: dict[int, tuple[list[str], Vectors]] = {}

    def put(self, entry: MemoryEntry) -> None:
        """Insert or replace an entry."""
        self.entries.pop(entry.id, None)
        self.entries[entry.id] = entry
        self._matrices.clear()

    def remove(self, id_: str) -> bool:
        self._matrices.clear()
        return self.entries.pop(id_, None) is not None

    def distances(self, query: Vectors) -> tuple[list[str], Vectors]:
        """The ids of all entries and their squared distances from `query`.

        An entry without an embedding counts as a zero vector. Those of another embedder, whose
        embeddings have another length, are left out.
        """
        ids, matrix = self._matrix(len(query))
        if not ids:
            return ids, np.empty(0, np.float32)
        difference = matrix - query
        return ids, np.einsum("ij,ij->i", difference, difference)

    def _matrix(self, length: int) -> tuple[list[str], Vectors]:
        if length not in self._matrices:
            zero = np.zeros(length, np.float32).tobytes()
            vectors = {id_: entry.vector or zero for id_, entry in self.entries.items()}
            fitting = {id_: v for id_, v in vectors.items() if len(v) == len(zero)}
            matrix = np.frombuffer(b"".join(fitting.values()), np.float32)
            self._matrices[length] = list(fitting), matrix.reshape(-1, length)
        return self._matrices[length]


def current_memory() -> RunMemory | None:
    """The memories of the current run or factory; None outside of both."""
    run = current_run()
    if run is None:
        return _of_factory.get()
    run = run.remembering or run
    with _creating:
        if run.memory is None:
            run.memory = RunMemory(run.memory_store)
    memory: RunMemory = run.memory
    return memory


@contextmanager
def memory_of_factory() -> Iterator[None]:
    """Within this, a factory outside of runs has a memory of its own, which is not stored."""
    token = _of_factory.set(RunMemory(None))
    try:
        yield
    finally:
        _of_factory.reset(token)
