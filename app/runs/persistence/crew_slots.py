"""Slots of crews whose runs in flight are limited, shared by all processes.

A run that holds a slot, or waits for one, has a row. Slots are given in the order in which runs
began to wait, over all processes. Rows end at a time unless their process renews them, so those of
a lost process do not count for long. Requests of a process share transactions.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import delete, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import Database, GroupCommit, current_time, insert_into
from app.runs.models import CrewSlotRow

# A run that waits repeats its request much more often.
_WAITS_FOR: Final = timedelta(seconds=3)
# An arbitrary number: the first half of the locks of crews.
_LOCK_CLASS: Final = 722_653


@dataclass(frozen=True, slots=True)
class _Request:
    """A run that needs a slot of its crew, or no longer does."""

    crew: str
    run_id: UUID
    is_release: bool = False


@dataclass(slots=True)
class _Slot:
    """A row."""

    run_id: UUID
    crew: str
    worker: str
    is_held: bool
    since: datetime
    until: datetime


class CrewSlots:
    """Gives the runs of this process slots within the limits of their crews."""

    def __init__(
        self, database: Database, limits: Mapping[str, int], *, worker: str, lease_seconds: float
    ) -> None:
        """`limits` are the slots of each crew that has a limit."""
        self.limits: Final = limits
        """The slots of each crew that has a limit."""
        self._database = database
        self._worker = worker
        self._lease = timedelta(seconds=lease_seconds)
        self._writes = GroupCommit(database)

    async def acquire(self, crew: str, run_id: UUID) -> bool:
        """Whether this run holds a slot now. If not, it keeps its position for some seconds.

        It is False as well for a run that another process has in hand. Raises DatabaseUnavailable.
        """
        return await self._writes.submit(self._apply, _Request(crew, run_id))

    def release(self, crew: str, run_id: UUID) -> None:
        """Free a run's slot or position soon, if this process has it."""
        self._writes.submit_soon(self._apply, _Request(crew, run_id, is_release=True), lambda: None)

    async def renew(self) -> None:
        """Renew the lease of all slots that this process holds. Raises DatabaseUnavailable."""
        async with self._database.write() as connection:
            await _lock(connection, self.limits)
            await connection.execute(
                update(CrewSlotRow)
                .where(CrewSlotRow.worker == self._worker, CrewSlotRow.is_held)
                .values(until=current_time(connection) + self._lease)
            )

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    async def _apply(
        self, connection: AsyncConnection, requests: Sequence[_Request]
    ) -> Sequence[bool]:
        """Release and give slots in order: an operation of group commits."""
        crews = {request.crew for request in requests}
        await _lock(connection, crews)
        now = current_time(connection)
        query = select(CrewSlotRow.__table__).where(CrewSlotRow.crew.in_(crews))
        before = {row.run_id: _Slot(*row) for row in await connection.execute(query)}
        slots = {run_id: slot for run_id, slot in before.items() if slot.until >= now}
        changed: dict[UUID, _Slot] = {}
        results = []
        for request in requests:
            slot = slots.get(request.run_id)
            if slot is not None and slot.worker != self._worker:
                results.append(False)
            elif request.is_release:
                slots.pop(request.run_id, None)
                changed.pop(request.run_id, None)
                results.append(True)
            else:
                slot = self._given(request, slot, slots, now)
                slots[request.run_id] = changed[request.run_id] = slot
                results.append(slot.is_held)
        await _remove(connection, before.keys() - slots.keys())
        await _store(connection, changed)
        return results

    def _given(
        self, request: _Request, slot: _Slot | None, slots: Mapping[UUID, _Slot], now: datetime
    ) -> _Slot:
        """The slot of a run of this process: held if it is the run's turn."""
        since = now if slot is None else slot.since
        is_held = slot is not None and slot.is_held
        if not is_held:
            before = sum(
                other.is_held or (other.since, other.run_id) < (since, request.run_id)
                for other in slots.values()
                if other.crew == request.crew and other.run_id != request.run_id
            )
            is_held = before < self.limits[request.crew]
        until = now + (self._lease if is_held else _WAITS_FOR)
        return _Slot(request.run_id, request.crew, self._worker, is_held, since, until)


async def _lock(connection: AsyncConnection, crews: Collection[str]) -> None:
    """Lock the slots of crews until the transaction ends (in one order: no deadlock)."""
    if connection.dialect.name == "sqlite":
        return  # the transaction is exclusive
    for crew in sorted(crews, key=_lock_number):
        numbers = {"class": _LOCK_CLASS, "crew": _lock_number(crew)}
        await connection.execute(text("SELECT pg_advisory_xact_lock(:class, :crew)"), numbers)


def _lock_number(crew: str) -> int:
    return zlib.crc32(crew.encode()) - 2**31


async def _remove(connection: AsyncConnection, run_ids: Collection[UUID]) -> None:
    if run_ids:
        await connection.execute(delete(CrewSlotRow).where(CrewSlotRow.run_id.in_(run_ids)))


async def _store(connection: AsyncConnection, slots: Mapping[UUID, _Slot]) -> None:
    if not slots:
        return
    rows = [
        {name: getattr(slot, name) for name in _Slot.__dataclass_fields__}
        for slot in slots.values()
    ]
    insert = insert_into(connection, CrewSlotRow).values(rows)
    changed: dict[str, Any] = {
        name: getattr(insert.excluded, name) for name in rows[0] if name != "run_id"
    }
    await connection.execute(
        insert.on_conflict_do_update(index_elements=[CrewSlotRow.run_id], set_=changed)
    )
