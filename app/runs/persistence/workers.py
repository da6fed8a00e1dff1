"""Workers and their crews in the database: what processes know of each other."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import delete, or_, select, update

from app.db import Database, insert_into
from app.runs.crew_info import CrewInfo
from app.runs.models import CrewDescriptionRow, WorkerRow
from app.runs.records import LiveWorker

# The time for which a crew remains known after the end of its last worker.
_KNOWN_FOR: Final = timedelta(days=7)
_LIVE: Final = tuple(getattr(WorkerRow, name) for name in LiveWorker.__dataclass_fields__)


class WorkerRepository:
    """Every method raises DatabaseUnavailable when the database can't be reached."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._live: Sequence[LiveWorker] = ()
        self._read_at = -math.inf

    def now(self) -> datetime:
        """The database's time, as in all rows."""
        return self._database.clock.now()

    async def renew(self, worker: LiveWorker, seconds: float) -> bool:
        """Store a worker as alive for so long; whether it is to drain. Lost workers are removed."""
        now = worker.last_seen_at
        row = {name: getattr(worker, name) for name in LiveWorker.__dataclass_fields__}
        row["alive_until"] = now + timedelta(seconds=seconds)
        lost = (
            select(WorkerRow.worker)
            .where(WorkerRow.alive_until < now)
            .order_by(WorkerRow.worker)
            .with_for_update(skip_locked=True)
        )
        async with self._database.write() as connection:
            insert = insert_into(connection, WorkerRow).values(row)
            renewed = insert.on_conflict_do_update(
                index_elements=[WorkerRow.worker],
                set_={
                    "free_slots": insert.excluded.free_slots,
                    "last_seen_at": insert.excluded.last_seen_at,
                    "alive_until": insert.excluded.alive_until,
                    # An operator may have set it.
                    "is_draining": or_(WorkerRow.is_draining, insert.excluded.is_draining),
                },
            ).returning(WorkerRow.is_draining)
            is_draining = await connection.scalar(renewed)
            await connection.execute(delete(WorkerRow).where(WorkerRow.worker.in_(lost)))
        return bool(is_draining)

    async def remove(self, worker: str) -> None:
        """Remove a worker that ends."""
        async with self._database.write() as connection:
            await connection.execute(delete(WorkerRow).where(WorkerRow.worker == worker))

    async def live(self, *, max_age_seconds: float = 0.0) -> Sequence[LiveWorker]:
        """The live workers, by name; as they were at most so many seconds ago."""
        if time.monotonic() - self._read_at > max_age_seconds:
            now = self.now()
            query = select(*_LIVE).where(WorkerRow.alive_until >= now).order_by(WorkerRow.worker)
            async with self._database.read() as connection:
                rows = await connection.execute(query)
                self._live = [LiveWorker(**row._mapping) for row in rows]
            self._read_at = time.monotonic()
        return self._live

    async def drain(self, worker: str) -> bool:
        """Make a worker drain; False if no live worker has this name."""
        live = (WorkerRow.worker == worker, WorkerRow.alive_until >= self.now())
        async with self._database.write() as connection:
            changed = await connection.execute(
                update(WorkerRow).where(*live).values(is_draining=True)
            )
        return bool(changed.rowcount)

    async def describe(self, crews: Iterable[CrewInfo]) -> None:
        """Store the descriptions of a worker's crews, instead of earlier ones."""
        now = self.now()
        rows = [
            {"crew": crew.name, "description": msgspec.to_builtins(crew), "last_seen_at": now}
            for crew in sorted(crews, key=lambda crew: crew.name)
        ]
        if not rows:
            return
        async with self._database.write() as connection:
            insert = insert_into(connection, CrewDescriptionRow)
            stored = insert.on_conflict_do_update(
                index_elements=[CrewDescriptionRow.crew],
                set_={
                    "description": insert.excluded.description,
                    "last_seen_at": insert.excluded.last_seen_at,
                },
            )
            await connection.execute(stored, rows)

    async def note_crews(self, crews: Iterable[str]) -> None:
        """Note that a worker still has these crews. Crews unseen for a week are forgotten."""
        now = self.now()
        forgotten = CrewDescriptionRow.last_seen_at < now - _KNOWN_FOR
        async with self._database.write() as connection:
            for crew in sorted(crews):  # one order of locks: no deadlock
                seen = update(CrewDescriptionRow).where(CrewDescriptionRow.crew == crew)
                await connection.execute(seen.values(last_seen_at=now))
            await connection.execute(delete(CrewDescriptionRow).where(forgotten))

    async def descriptions(self) -> Mapping[str, CrewInfo]:
        """The crews that workers have, or had within a week, by name."""
        query = select(CrewDescriptionRow.description).order_by(CrewDescriptionRow.crew)
        async with self._database.read() as connection:
            found: list[Any] = list(await connection.scalars(query))
        crews = [msgspec.convert(description, CrewInfo) for description in found]
        return {crew.name: crew for crew in crews}
