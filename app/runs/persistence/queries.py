"""The questions asked of the database about runs; nothing here changes anything."""

import base64
import binascii
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from sqlalchemy import func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import load_only

from app.db import MAX_IDS_PER_STATEMENT, BatchLoader, Database
from app.runs.errors import InvalidInput
from app.runs.events.hub import Event
from app.runs.models import CARRIED, UNSETTLED, RunEvent, RunStatus, UserRun, WebhookDelivery


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a list holds; `created_from` is inclusive, `created_before` is not."""

    owner: str | None = None
    crew: str | None = None
    status: RunStatus | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """Runs, newest first; `next_cursor` asks for those after them, None if there are none."""

    runs: Sequence[UserRun]
    next_cursor: str | None


class StalledRun(NamedTuple):
    """A run in nobody's hands; `attempt` counts those begun, `lost` those that did not end."""

    run_id: UUID
    attempt: int
    lost: int
    owner: str
    crew: str


class RunQueries:
    """Every method raises DatabaseUnavailable when the database can't be asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._runs = BatchLoader(self._runs_by_id)
        self._histories = BatchLoader(self._events_by_run)

    async def get(self, run_id: UUID) -> UserRun | None:
        """The run as it stands, or None if there is no such run. Callers may share it."""
        return await self._runs.get(run_id)

    async def _runs_by_id(self, run_ids: Sequence[UUID]) -> Mapping[UUID, UserRun]:
        query = select(UserRun).where(UserRun.run_id.in_(run_ids))
        async with self._database.read() as connection, AsyncSession(connection) as session:
            return {run.run_id: run for run in await session.scalars(query)}

    async def page(self, wanted: RunFilter, cursor: str | None, limit: int) -> RunPage:
        """Runs without their outputs, newest first. Raises InvalidInput for a wrong cursor."""
        query = (
            select(UserRun)
            .options(load_only(*_LISTED, raiseload=True))
            .order_by(UserRun.created_at.desc(), UserRun.run_id.desc())
            .limit(limit + 1)
        )
        if wanted.owner is not None:
            query = query.where(UserRun.owner == wanted.owner)
        if wanted.crew is not None:
            query = query.where(UserRun.crew == wanted.crew)
        if wanted.status is not None:
            query = query.where(UserRun.status == wanted.status)
        if wanted.created_from is not None:
            query = query.where(UserRun.created_at >= wanted.created_from)
        if wanted.created_before is not None:
            query = query.where(UserRun.created_at < wanted.created_before)
        if cursor is not None:
            position = tuple_(UserRun.created_at, UserRun.run_id)
            query = query.where(position < _decode(cursor))
        async with self._database.read() as connection, AsyncSession(connection) as session:
            runs = list(await session.scalars(query))
        more = len(runs) > limit
        runs = runs[:limit]
        return RunPage(runs, _encode(runs[-1]) if more else None)

    async def with_key(self, owner: str, idempotency_key: str) -> UUID | None:
        """The owner's run that was accepted with this idempotency key."""
        query = select(UserRun.run_id).where(
            UserRun.owner == owner, UserRun.idempotency_key == idempotency_key
        )
        async with self._database.read() as connection:
            run_id: UUID | None = await connection.scalar(query)
            return run_id

    async def abandoned(self, limit: int) -> list[StalledRun]:
        """Runs that nobody carries, and should: each owner's oldest, then each one's second, ..."""
        place = func.row_number().over(partition_by=UserRun.owner, order_by=UserRun.created_at)
        lost = UserRun.attempt - UserRun.pauses  # an attempt that paused for a human did end
        query = (
            select(UserRun.run_id, UserRun.attempt, lost, UserRun.owner, UserRun.crew)
            .where(
                UserRun.status.in_(CARRIED),
                or_(UserRun.lease_until.is_(None), UserRun.lease_until < datetime.now(UTC)),
            )
            .order_by(place, UserRun.created_at)
            .limit(limit)
        )
        async with self._database.read() as connection:
            return [StalledRun(*row) for row in await connection.execute(query)]

    async def unsettled(self, run_ids: Collection[UUID]) -> set[UUID]:
        """Those of the given runs that are not settled yet."""
        wanted = list(run_ids)
        found: set[UUID] = set()
        async with self._database.read() as connection:
            for start in range(0, len(wanted), MAX_IDS_PER_STATEMENT):
                query = select(UserRun.run_id).where(
                    UserRun.run_id.in_(wanted[start : start + MAX_IDS_PER_STATEMENT]),
                    UserRun.status.in_(UNSETTLED),
                )
                found.update(await connection.scalars(query))
        return found

    async def cancelled(self, worker: str, since: datetime) -> set[UUID]:
        """The runs of this worker that were cancelled since then."""
        query = select(UserRun.run_id).where(
            UserRun.worker == worker,
            UserRun.status == RunStatus.CANCELLED,
            UserRun.finished_at >= since,
        )
        async with self._database.read() as connection:
            return set(await connection.scalars(query))

    async def history(self, run_id: UUID, *, after_seq: int = -1) -> list[Event]:
        """The stored events of a run in their order, above a number."""
        events = await self._histories.get(run_id) or []
        return [event for event in events if event.seq is not None and event.seq > after_seq]

    async def _events_by_run(self, run_ids: Sequence[UUID]) -> Mapping[UUID, list[Event]]:
        found = defaultdict(list)
        for event in await self.events(run_ids):
            found[event.run_id].append(event)
        return found

    async def events(
        self, run_ids: Collection[UUID], *, since: datetime | None = None
    ) -> list[Event]:
        """The stored events of the runs, in each run's order; those since a time."""
        query = select(RunEvent).where(RunEvent.run_id.in_(run_ids))
        if since is not None:
            query = query.where(RunEvent.at >= since)
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(RunEvent.run_id, RunEvent.seq))
            return [Event(row.run_id, row.seq, row.type, row.data, row.at) for row in rows]

    async def deliveries(self, run_id: UUID) -> list[WebhookDelivery]:
        """What the run's webhook was told, or is to be told, in the order of the events."""
        query = (
            select(WebhookDelivery)
            .where(WebhookDelivery.run_id == run_id)
            .order_by(WebhookDelivery.seq)
        )
        async with self._database.read() as connection, AsyncSession(connection) as session:
            return list(await session.scalars(query))


_LISTED: tuple[Any, ...] = (
    UserRun.run_id,
    UserRun.crew,
    UserRun.status,
    UserRun.inputs,
    UserRun.attempt,
    UserRun.error,
    UserRun.error_type,
    UserRun.usage,
    UserRun.created_at,
    UserRun.started_at,
    UserRun.finished_at,
)


def _encode(run: UserRun) -> str:
    position = msgspec.json.encode((run.created_at, run.run_id))
    return base64.urlsafe_b64encode(position).decode()


def _decode(cursor: str) -> tuple[datetime, UUID]:
    try:
        position = base64.urlsafe_b64decode(cursor.encode())
        return msgspec.json.decode(position, type=tuple[datetime, UUID])
    except (binascii.Error, ValueError, msgspec.MsgspecError):
        raise InvalidInput("cursor", "not one that a list gave as next_cursor") from None
