"""The outbox of webhooks: what receivers are to be told, committed with what it tells of."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from yarl import URL

from app.db import Database, GroupCommit
from app.runs.events import Event
from app.runs.models import DeliveryStatus, RunEvent, UserRun, WebhookDelivery

_TOLD_OF_TASKS: Final = ("index", "name", "agent", "started_at")
_TOLD_OF_RUNS: Final = ("status", "outputs", "error", "error_type")
_TOLD_OF: Final = ("task.finished", "run.succeeded", "run.failed", "run.cancelled")
# How many of those that are due are looked at when some are chosen.
_DUE_PER_LOOK: Final = 500

_KEY: Final = tuple_(WebhookDelivery.run_id, WebhookDelivery.seq)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt to tell a receiver of an event; the outbox keeps it for this one until its lease
    ends. `attempt` counts from 1 and is what the later writes must name.
    """

    run_id: UUID
    seq: int
    attempt: int
    host: str
    url: str
    event: str
    at: datetime
    data: dict[str, Any]

    @property
    def webhook_id(self) -> str:
        """The same for every attempt, and for no other event."""
        return webhook_id(self.run_id, self.seq)


@dataclass(frozen=True, slots=True)
class Attempted:
    """What came of an attempt: `result` is a short word on it, `due_at` the next one's time."""

    delivery: Delivery
    status: DeliveryStatus
    result: str
    due_at: datetime | None


def webhook_id(run_id: UUID, seq: int) -> str:
    """What receivers tell deliveries apart by."""
    return f"msg_{run_id.hex}_{seq}"


async def put_in_outbox(
    connection: AsyncConnection, events: Iterable[tuple[Event, str | None]]
) -> None:
    """Add what the webhook of each event's run, if it has one, is to be told.

    Part of the transaction that stores the events; costs nothing if there is nothing to tell.
    """
    now = datetime.now(UTC)
    rows = [
        {
            "run_id": event.run_id,
            "seq": event.seq,
            "event": event.type,
            "host": _host_and_port(url),
            "status": DeliveryStatus.PENDING,
            "attempts": 0,
            "due_at": now,
            "created_at": now,
        }
        for event, url in events
        if url is not None and event.type in _TOLD_OF
    ]
    if rows:
        await connection.execute(insert(WebhookDelivery.__table__), rows)  # type: ignore[arg-type]


class Outbox:
    """What is due, given to one taker at a time.

    Every method raises DatabaseUnavailable when the database can't be asked.
    """

    def __init__(self, database: Database, *, lease_seconds: float) -> None:
        self._database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._writes = GroupCommit(database)

    async def take(
        self, under_way: Sequence[Delivery], *, limit: int, limit_per_host: int
    ) -> list[Delivery]:
        """Begin attempts at what is due, the longest due first.

        With those `under_way` there are at most `limit`, and `limit_per_host` to one host. What is
        taken is nobody else's until the lease ends.
        """
        per_host = Counter(delivery.host for delivery in under_way)
        full = [host for host, count in per_host.items() if count >= limit_per_host]
        chosen: list[tuple[UUID, int]] = []
        for run_id, seq, host in await self._due(full):
            if len(under_way) + len(chosen) == limit:
                break
            if per_host[host] < limit_per_host:
                per_host[host] += 1
                chosen.append((run_id, seq))
        return await self._begin(chosen) if chosen else []

    async def record(self, attempted: Attempted) -> None:
        """Commit what came of an attempt; nothing if another has begun meanwhile."""
        await self._writes.submit(self._record_all, attempted)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    async def _due(self, full_hosts: Collection[str]) -> list[tuple[UUID, int, str]]:
        question = (
            select(WebhookDelivery.run_id, WebhookDelivery.seq, WebhookDelivery.host)
            .where(*_is_due(), WebhookDelivery.host.not_in(full_hosts))
            .order_by(WebhookDelivery.due_at)
            .limit(_DUE_PER_LOOK)
        )
        async with self._database.read() as connection:
            return [(row.run_id, row.seq, row.host) for row in await connection.execute(question)]

    async def _begin(self, chosen: Sequence[tuple[UUID, int]]) -> list[Delivery]:
        # Locked rows are skipped, not waited for: another process begins those. SQLite leaves the
        # lock out; there the transaction is exclusive.
        free = select(WebhookDelivery.run_id, WebhookDelivery.seq).where(
            _KEY.in_(chosen), *_is_due()
        )
        begin = (
            update(WebhookDelivery)
            .where(_KEY.in_(free.with_for_update(skip_locked=True)))
            .values(attempts=WebhookDelivery.attempts + 1, due_at=datetime.now(UTC) + self._lease)
            .returning(WebhookDelivery.run_id, WebhookDelivery.seq, WebhookDelivery.attempts)
        )
        async with self._database.write() as connection:
            begun = {(row[0], row[1]): row[2] for row in await connection.execute(begin)}
            if not begun:
                return []
            deliveries = [
                _delivery(row, begun[row.run_id, row.seq])
                for row in await connection.execute(_CONTENT.where(_KEY.in_(list(begun))))
            ]
            # An event that was stored while its run was being deleted has nobody to tell of.
            if gone := begun.keys() - {(d.run_id, d.seq) for d in deliveries}:
                await connection.execute(delete(WebhookDelivery).where(_KEY.in_(list(gone))))
        return deliveries

    async def _record_all(
        self, connection: AsyncConnection, all_attempted: Sequence[Attempted]
    ) -> Sequence[None]:
        statement = (
            update(WebhookDelivery.__table__)  # type: ignore[arg-type]
            .where(
                WebhookDelivery.run_id == bindparam("the_run"),
                WebhookDelivery.seq == bindparam("the_seq"),
                WebhookDelivery.attempts == bindparam("the_attempt"),
                WebhookDelivery.status == DeliveryStatus.PENDING,
            )
            .values({name: bindparam(name) for name in _RECORDED})
        )
        now = datetime.now(UTC)
        changes = [
            {
                "the_run": attempted.delivery.run_id,
                "the_seq": attempted.delivery.seq,
                "the_attempt": attempted.delivery.attempt,
                "status": attempted.status,
                "due_at": attempted.due_at,
                "last_result": attempted.result,
                "attempted_at": now,
            }
            # In one order, as runs are deleted with their deliveries: no deadlock.
            for attempted in sorted(
                all_attempted, key=lambda one: (one.delivery.run_id, one.delivery.seq)
            )
        ]
        await connection.execute(statement, changes)
        return [None] * len(all_attempted)


_RECORDED: Final = ("status", "due_at", "last_result", "attempted_at")

_CONTENT: Final = (
    select(
        WebhookDelivery.run_id,
        WebhookDelivery.seq,
        WebhookDelivery.host,
        RunEvent.type,
        RunEvent.data,
        RunEvent.at,
        UserRun.webhook_url,
        UserRun.crew,
        UserRun.status,
        UserRun.outputs,
        UserRun.error,
        UserRun.error_type,
    )
    .join(UserRun, UserRun.run_id == WebhookDelivery.run_id)
    .join(
        RunEvent,
        (RunEvent.run_id == WebhookDelivery.run_id) & (RunEvent.seq == WebhookDelivery.seq),
    )
)


def _is_due() -> tuple[Any, ...]:
    return (
        WebhookDelivery.status == DeliveryStatus.PENDING,
        WebhookDelivery.due_at <= datetime.now(UTC),
    )


def _delivery(row: Any, attempt: int) -> Delivery:
    data: dict[str, Any] = {"run_id": row.run_id, "crew": row.crew}
    if row.type == "task.finished":
        data |= {name: row.data.get(name) for name in _TOLD_OF_TASKS}
    else:
        data |= {name: getattr(row, name) for name in _TOLD_OF_RUNS}
    return Delivery(row.run_id, row.seq, attempt, row.host, row.webhook_url, row.type, row.at, data)


def _host_and_port(url: str) -> str:
    parsed = URL(url)
    return f"{parsed.raw_host}:{parsed.port}"
