"""Memories that runs share: stored for a caller and a crew, in the service's database."""

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller
from app.db import Database
from app.db.batch_loader import BatchLoader
from app.db.group_commit import GroupCommit
from app.db.inserts import in_parts
from app.engine import MemoryChanges, MemoryEntry, MemoryStore
from app.runs.background import PeriodicService
from app.runs.models import StoredMemory, UserRun
from app.runs.records import ClaimedRun
from app.runs.texts import replace_surrogates

logger = logging.getLogger("crew_capture.runs")

MemoryOwnership = Literal["caller", "run", "crew"]

MAX_MEMORIES: Final = 2000
"""The memories of one crew for one caller; beyond, the least recently used are deleted."""

_EVERYONE: Final = "*"  # no id of a key
_PAGE: Final = 500
_INTERVAL_SECONDS: Final = 3600.0
_IDS_PER_STATEMENT: Final = 500


@dataclass(frozen=True, slots=True)
class MemoryOwner:
    """The caller and the crew that memories belong to; the key of all their reads and writes."""

    owner: str
    end_user: str
    crew: str


def memory_owner(run: ClaimedRun, ownership: MemoryOwnership) -> MemoryOwner | None:
    """The owner of a run's memories; None if they end with the run.

    With `caller`, they belong to the API key, or to its end user if the run has one. A run with
    neither has no caller that later runs could be compared with: an address is no person.
    """
    if ownership == "crew":
        return MemoryOwner(_EVERYONE, "", run.crew)
    if ownership == "caller" and (run.owner or run.end_user):
        return MemoryOwner(run.owner, run.end_user, run.crew)
    return None


class MemoryView(msgspec.Struct, kw_only=True):
    """A memory of a crew's runs. `user` is the end user that it belongs to, if any."""

    id: str
    crew: str
    user: str | None
    content: str
    scope: str
    categories: list[str]
    metadata: dict[str, Any]
    importance: float
    source: str | None
    private: bool
    created_at: datetime
    last_accessed: datetime


@dataclass(frozen=True, slots=True)
class _Write:
    of: MemoryOwner
    run_id: UUID
    attempt: int
    changes: MemoryChanges


class Memories:
    """The stored memories of all callers."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._commits = GroupCommit(database)
        self._entries: BatchLoader[MemoryOwner, list[MemoryEntry]] = BatchLoader(self._read)

    async def aclose(self) -> None:
        """Commit the changes that were submitted."""
        await self._commits.aclose()

    def of_run(self, run: ClaimedRun, ownership: MemoryOwnership) -> MemoryStore | None:
        """The memories that a run may use; None if they end with it."""
        of = memory_owner(run, ownership)
        return None if of is None else _RunMemories(self, of, run)

    async def load(self, of: MemoryOwner) -> Sequence[MemoryEntry]:
        """All memories of an owner, oldest first. Raises DatabaseUnavailable."""
        return await self._entries.get(of) or ()

    async def apply(self, of: MemoryOwner, run: ClaimedRun, changes: MemoryChanges) -> None:
        """Store the changes of a run, unless another attempt has begun. Raises DatabaseUnavailable.

        The attempt is a fencing token: of attempts that execute at once, one stores its memories.
        """
        await self._commits.submit(_apply, _Write(of, run.run_id, run.attempt, changes))

    async def export(self, caller: Caller, crew: str | None = None) -> AsyncIterator[MemoryView]:
        """The memories of a caller and its end users, in the order of crews and ids.

        Raises DatabaseUnavailable.
        """
        key = (StoredMemory.crew, StoredMemory.memory_id, StoredMemory.end_user)
        condition, after = _of_caller(caller, crew), None
        while True:
            page = select(*_COLUMNS).where(condition).order_by(*key).limit(_PAGE)
            if after is not None:
                page = page.where(tuple_(*key) > after)
            async with self._database.read() as connection:
                rows = list(await connection.execute(page))
            for row in rows:
                yield _view(row)
            if len(rows) < _PAGE:
                return
            after = tuple_(rows[-1].crew, rows[-1].memory_id, rows[-1].end_user)

    async def delete(self, caller: Caller, crew: str | None = None) -> int:
        """Delete the memories of a caller and its end users. Raises DatabaseUnavailable."""
        async with self._database.write() as connection:
            statement = delete(StoredMemory).where(_of_caller(caller, crew))
            return (await connection.execute(statement)).rowcount

    async def purge(self, older_than: timedelta) -> int:
        """Delete memories that no run has used for so long. Raises DatabaseUnavailable."""
        before = self._database.clock.now() - older_than
        async with self._database.write() as connection:
            statement = delete(StoredMemory).where(StoredMemory.last_accessed < before)
            return (await connection.execute(statement)).rowcount

    async def _read(self, owners: Sequence[MemoryOwner]) -> Mapping[MemoryOwner, list[MemoryEntry]]:
        found: dict[MemoryOwner, list[MemoryEntry]] = defaultdict(list)
        async with self._database.read() as connection:
            for part in in_parts(owners, _IDS_PER_STATEMENT):
                query = (
                    select(*_COLUMNS, StoredMemory.vector)
                    .where(or_(*map(_is_of, part)))
                    .order_by(StoredMemory.created_at)
                )
                for row in await connection.execute(query):
                    found[MemoryOwner(row.owner, row.end_user, row.crew)].append(_entry(row))
        return found


class _RunMemories:
    """The memories of one run, as the engine uses them."""

    def __init__(self, memories: Memories, of: MemoryOwner, run: ClaimedRun) -> None:
        self._memories = memories
        self._of = of
        self._run = run

    async def load(self) -> Sequence[MemoryEntry]:
        return await self._memories.load(self._of)

    async def apply(self, changes: MemoryChanges) -> None:
        await self._memories.apply(self._of, self._run, changes)


class MemoryRetention(PeriodicService):
    """Deletes memories that were not used for some days, once an hour."""

    name = "memory retention"

    def __init__(self, memories: Memories, *, days: float) -> None:
        super().__init__(_INTERVAL_SECONDS)
        self._memories = memories
        self._older_than = timedelta(days=days)

    async def run_once(self) -> None:
        """Purge once. Raises DatabaseUnavailable."""
        if removed := await self._memories.purge(self._older_than):
            logger.info("Removed %d memories unused for %s", removed, self._older_than)


_COLUMNS: Final = tuple(
    column for column in StoredMemory.__table__.columns if column.name != "vector"
)


async def _apply(connection: AsyncConnection, writes: Sequence[_Write]) -> Sequence[None]:
    """Apply the changes of several runs, in order, each within its own owner's memories."""
    query = select(UserRun.run_id, UserRun.attempt).where(
        UserRun.run_id.in_({write.run_id for write in writes})
    )
    attempts = {row.run_id: row.attempt for row in await connection.execute(query)}
    for write in writes:
        if attempts.get(write.run_id) == write.attempt:
            await _apply_one(connection, write.of, write.changes)
    return [None] * len(writes)


async def _apply_one(connection: AsyncConnection, of: MemoryOwner, changes: MemoryChanges) -> None:
    for ids in in_parts([*changes.deleted, *changes.saved], _IDS_PER_STATEMENT):
        condition = and_(_is_of(of), StoredMemory.memory_id.in_(ids))
        await connection.execute(delete(StoredMemory).where(condition))
    if changes.saved:
        rows = [_row(of, entry) for entry in changes.saved.values()]
        await connection.execute(insert(StoredMemory), rows)
    for at in set(changes.touched.values()):
        touched = [id_ for id_, when in changes.touched.items() if when == at]
        for ids in in_parts(touched, _IDS_PER_STATEMENT):
            condition = and_(_is_of(of), StoredMemory.memory_id.in_(ids))
            values = {"last_accessed": at.replace(tzinfo=UTC)}
            await connection.execute(update(StoredMemory).where(condition).values(values))
    if changes.saved:
        await _delete_surplus(connection, of)


async def _delete_surplus(connection: AsyncConnection, of: MemoryOwner) -> None:
    surplus = (
        select(StoredMemory.memory_id)
        .where(_is_of(of))
        .order_by(StoredMemory.last_accessed.desc(), StoredMemory.memory_id)
        .offset(MAX_MEMORIES)
        .limit(_IDS_PER_STATEMENT)
    )
    if ids := list(await connection.scalars(surplus)):
        condition = and_(_is_of(of), StoredMemory.memory_id.in_(ids))
        await connection.execute(delete(StoredMemory).where(condition))


def _is_of(of: MemoryOwner) -> ColumnElement[bool]:
    return and_(
        StoredMemory.owner == of.owner,
        StoredMemory.end_user == of.end_user,
        StoredMemory.crew == of.crew,
    )


def _of_caller(caller: Caller, crew: str | None) -> ColumnElement[bool]:
    """The memories of a caller itself, also if it is an admin, and of its end users."""
    conditions = [StoredMemory.owner == (caller.owner or "")]
    if caller.end_user:
        conditions.append(StoredMemory.end_user == caller.end_user)
    if crew is not None:
        conditions.append(StoredMemory.crew == crew)
    return and_(*conditions)


def _row(of: MemoryOwner, entry: MemoryEntry) -> dict[str, Any]:
    return {
        "owner": of.owner,
        "end_user": of.end_user,
        "crew": of.crew,
        "memory_id": entry.id,
        "space": entry.space,
        "content": _storable(entry.content),
        "scope": _storable(entry.scope),
        "categories": [_storable(name) for name in entry.categories],
        "details": msgspec.json.decode(_storable(_json(entry.metadata))),
        "importance": entry.importance,
        "source": None if entry.source is None else _storable(entry.source),
        "private": entry.private,
        "created_at": entry.created_at.replace(tzinfo=UTC),
        "last_accessed": entry.last_accessed.replace(tzinfo=UTC),
        "vector": entry.vector,
    }


def _entry(row: Any) -> MemoryEntry:
    return MemoryEntry(
        id=row.memory_id,
        space=row.space,
        content=row.content,
        scope=row.scope,
        categories=row.categories,
        metadata=row.details,
        importance=row.importance,
        created_at=row.created_at.replace(tzinfo=None),
        last_accessed=row.last_accessed.replace(tzinfo=None),
        source=row.source,
        private=row.private,
        vector=row.vector,
    )


def _view(row: Any) -> MemoryView:
    return MemoryView(
        id=row.memory_id,
        crew=row.crew,
        user=row.end_user or None,
        content=row.content,
        scope=row.scope,
        categories=row.categories,
        metadata=row.details,
        importance=row.importance,
        source=row.source,
        private=row.private,
        created_at=row.created_at,
        last_accessed=row.last_accessed,
    )


def _json(metadata: Mapping[str, Any]) -> str:
    return msgspec.json.encode(dict(metadata), enc_hook=str).decode()


def _storable(text: str) -> str:
    """A text without lone surrogates and NUL, which databases can't store."""
    return replace_surrogates(text).replace("\x00", "").replace("\\u0000", "")
