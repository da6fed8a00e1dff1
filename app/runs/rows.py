"""Every change to the table of runs, and the questions asked of it.

The row is the one authority over a run. Taking a run raises `attempt`; every later write
names the attempt that it belongs to, and changes nothing once another has begun.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from app.db import Database, GroupCommit
from app.runs.models import UNSETTLED, RunStatus, UserRun

# PostgreSQL takes 32,767 parameters in one statement, SQLite 32,766.
_IDS_PER_QUESTION = 5000


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run as it is accepted."""

    run_id: UUID
    crew: str
    inputs: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TakenRun:
    """A run that this worker holds; `attempt` is what its later writes must name."""

    run_id: UUID
    crew: str
    inputs: dict[str, Any]
    attempt: int
    created_at: datetime
    started_at: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, as its row keeps it."""

    status: RunStatus
    outputs: dict[str, str] | None = None
    raw_result: str | None = None
    tasks: list[dict[str, Any]] | None = None
    usage: dict[str, int] | None = None
    error: str | None = None
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class _Settlement:
    run_id: UUID
    attempt: int
    outcome: Outcome


class RunRows:
    """The table `user_runs`, as one worker sees it.

    Writes of many runs are committed in groups, and each is acknowledged after its commit.
    Every method raises DatabaseUnavailable when the database can't be asked.
    """

    def __init__(self, database: Database, *, worker: str, lease_seconds: float) -> None:
        self._database = database
        self._writes = GroupCommit(database)
        self._worker = worker
        self._lease = timedelta(seconds=lease_seconds)

    async def add(self, run: NewRun) -> None:
        """Commit a new run as queued, in this worker's hands."""
        await self._writes.submit(self._add_all, run)

    async def take(self, run_id: UUID) -> TakenRun | None:
        """Begin an attempt at a run; None if it is settled, unknown or another worker's."""
        return await self._writes.submit(self._take_all, run_id)

    async def settle(self, taken: TakenRun, outcome: Outcome) -> bool:
        """Commit how the attempt ended; False if the run is no longer this attempt's.

        Saying the same again, after a commit whose answer was lost, is safe.
        """
        settlement = _Settlement(taken.run_id, taken.attempt, outcome)
        return await self._writes.submit(self._settle_all, settlement)

    async def renew_leases(self) -> None:
        """Hold on to every unsettled run of this worker for another lease."""
        held = update(UserRun).where(UserRun.worker == self._worker, UserRun.status.in_(UNSETTLED))
        async with self._database.write() as connection:
            await connection.execute(held.values(lease_until=_now() + self._lease))

    async def release(self) -> None:
        """Let go of every unsettled run of this worker: whoever looks next may take it."""
        held = update(UserRun).where(UserRun.worker == self._worker, UserRun.status.in_(UNSETTLED))
        async with self._database.write() as connection:
            await connection.execute(held.values(lease_until=None))

    async def abandoned(self, limit: int) -> list[tuple[UUID, int]]:
        """Unsettled runs in nobody's hands, oldest first, each with its attempts so far."""
        question = (
            select(UserRun.run_id, UserRun.attempt)
            .where(
                UserRun.status.in_(UNSETTLED),
                or_(UserRun.lease_until.is_(None), UserRun.lease_until < _now()),
            )
            .order_by(UserRun.created_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [(row.run_id, row.attempt) for row in await connection.execute(question)]

    async def unsettled(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Those of the given runs that are not settled yet."""
        wanted = list(run_ids)
        found: set[UUID] = set()
        async with self._database.read() as connection:
            for start in range(0, len(wanted), _IDS_PER_QUESTION):
                question = select(UserRun.run_id).where(
                    UserRun.run_id.in_(wanted[start : start + _IDS_PER_QUESTION]),
                    UserRun.status.in_(UNSETTLED),
                )
                found.update(await connection.scalars(question))
        return found

    async def get(self, run_id: UUID) -> UserRun | None:
        """The run as it stands, or None if there is no such run."""
        async with self._database.read() as connection, AsyncSession(connection) as session:
            return await session.get(UserRun, run_id)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    async def _add_all(self, connection: AsyncConnection, runs: Sequence[NewRun]) -> Sequence[None]:
        lease_until = _now() + self._lease
        rows = [
            {
                "run_id": run.run_id,
                "crew": run.crew,
                "inputs": run.inputs,
                "created_at": run.created_at,
                "status": RunStatus.QUEUED,
                "attempt": 0,
                "worker": self._worker,
                "lease_until": lease_until,
            }
            for run in runs
        ]
        await connection.execute(insert(UserRun.__table__), rows)  # type: ignore[arg-type]
        return [None] * len(runs)

    async def _take_all(
        self, connection: AsyncConnection, run_ids: Sequence[UUID]
    ) -> Sequence[TakenRun | None]:
        now = _now()
        rows = await _locked(connection, UserRun.__table__.columns, run_ids)
        taken = [self._attempt(rows.get(run_id), now) for run_id in run_ids]
        changes = [
            {
                "the_run": run.run_id,
                "attempt": run.attempt,
                "status": RunStatus.RUNNING,
                "started_at": run.started_at,
                "worker": self._worker,
                "lease_until": now + self._lease,
            }
            for run in taken
            if run is not None
        ]
        await _change(connection, changes)
        return taken

    def _attempt(self, row: Row[Any] | None, now: datetime) -> TakenRun | None:
        if row is None or row.status not in UNSETTLED:
            return None
        free = row.lease_until is None or row.lease_until < now
        mine = row.worker == self._worker and row.status == RunStatus.QUEUED
        if not (free or mine):
            return None
        started_at = now
        if row.started_at is not None:  # keys of outputs carry it: each attempt's is later
            started_at = max(now, row.started_at + timedelta(seconds=1))
        return TakenRun(
            row.run_id, row.crew, row.inputs, row.attempt + 1, row.created_at, started_at
        )

    async def _settle_all(
        self, connection: AsyncConnection, settlements: Sequence[_Settlement]
    ) -> Sequence[bool]:
        now = _now()
        columns = (UserRun.run_id, UserRun.status, UserRun.attempt)
        rows = await _locked(connection, columns, [s.run_id for s in settlements])
        changes = []
        mine = []
        for settlement in settlements:
            row = rows.get(settlement.run_id)
            mine.append(row is not None and row.attempt == settlement.attempt)
            if mine[-1] and row is not None and row.status in UNSETTLED:
                changes.append(_settled_values(settlement, now))
        await _change(connection, changes)
        return mine


async def _locked(
    connection: AsyncConnection, columns: Iterable[Any], run_ids: Sequence[UUID]
) -> dict[UUID, Row[Any]]:
    """The rows by run id, locked until the transaction ends (in one order: no deadlock)."""
    question = (
        select(*columns)
        .where(UserRun.run_id.in_(run_ids))
        .order_by(UserRun.run_id)
        .with_for_update()  # SQLite leaves it out; there the transaction is exclusive
    )
    return {row.run_id: row for row in await connection.execute(question)}


def _settled_values(settlement: _Settlement, now: datetime) -> dict[str, Any]:
    outcome = settlement.outcome
    return {
        "the_run": settlement.run_id,
        "status": outcome.status,
        "outputs": outcome.outputs,
        "raw_result": outcome.raw_result,
        "tasks": outcome.tasks,
        "usage": outcome.usage,
        "error": outcome.error,
        "error_type": outcome.error_type,
        "lease_until": None,
        "finished_at": now,
    }


async def _change(connection: AsyncConnection, changes: list[dict[str, Any]]) -> None:
    """Update each row (`the_run`) by its values; all changes name the same columns."""
    if changes:
        columns: dict[str, Any] = {
            name: bindparam(name) for name in changes[0] if name != "the_run"
        }
        statement = update(UserRun.__table__).where(  # type: ignore[arg-type]
            UserRun.run_id == bindparam("the_run")
        )
        await connection.execute(statement.values(columns), changes)


def _now() -> datetime:
    return datetime.now(UTC)
