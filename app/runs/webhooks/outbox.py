"""The outbox of webhooks: what receivers are to be told, committed with what it tells of."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, delete, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from yarl import URL

from app.db import Database, GroupCommit, insert_new
from app.runs.events.hub import Event
from app.runs.models import DeliveryStatus, RunEvent, UserRun, WebhookDelivery
from app.runs.webhooks.payloads import (
    SUBSCRIBED_EVENTS,
    EventSnapshot,
    Webhook,
    WebhookKind,
    Webhooks,
    body,
    webhooks_of,
)

# How many of those that are due are looked at when some are chosen.
_DUE_PER_LOOK: Final = 500

# Of a delivery: its run, its event, and which of the run's webhooks it is for.
Key = tuple[UUID, int, WebhookKind]
_KEY_COLUMNS: Final = (WebhookDelivery.run_id, WebhookDelivery.seq, WebhookDelivery.role)
_KEY: Final = tuple_(*_KEY_COLUMNS)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An attempt to tell a receiver of an event; the outbox keeps it for this one until its lease
    ends. `attempt` counts from 1 and is what the later writes must name.
    """

    key: Key
    attempt: int
    host: str
    webhook: Webhook
    body: dict[str, Any]

    @property
    def webhook_id(self) -> str:
        """The same for every attempt, and for no other event."""
        return webhook_id(*self.key)


@dataclass(frozen=True, slots=True)
class Attempted:
    """What came of an attempt: `result` is a short word on it, `due_at` the next one's time."""

    delivery: Delivery
    status: DeliveryStatus
    result: str
    due_at: datetime | None


def webhook_id(run_id: UUID, seq: int, role: str) -> str:
    """What receivers tell deliveries apart by."""
    return f"msg_{run_id.hex}_{seq}" + ("" if role == "run" else f"_{role}")


async def put_in_outbox(
    connection: AsyncConnection, events: Iterable[tuple[Event, Webhooks]]
) -> None:
    """Add what the webhooks of each event's run, if it has some, are to be told.

    Part of the transaction that stores the events; costs nothing if there is nothing to tell.
    """
    now = datetime.now(UTC)
    rows = [
        {
            "run_id": event.run_id,
            "seq": event.seq,
            "event": event.type,
            "role": role,
            "host": _host_and_port(webhook.url),
            "status": DeliveryStatus.PENDING,
            "attempts": 0,
            "due_at": now,
            "created_at": now,
        }
        for event, webhooks in events
        for role, webhook in webhooks.items()
        if event.type in SUBSCRIBED_EVENTS[role]
    ]
    await insert_new(connection, WebhookDelivery, rows)


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
        chosen: list[Key] = []
        for key, host in await self._due(full):
            if len(under_way) + len(chosen) == limit:
                break
            if per_host[host] < limit_per_host:
                per_host[host] += 1
                chosen.append(key)
        return await self._begin(chosen) if chosen else []

    async def record(self, attempted: Attempted) -> None:
        """Commit what came of an attempt; nothing if another has begun meanwhile."""
        await self._writes.submit(self._record_all, attempted)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    async def _due(self, full_hosts: Collection[str]) -> list[tuple[Key, str]]:
        query = (
            select(*_KEY_COLUMNS, WebhookDelivery.host)
            .where(*_is_due(), WebhookDelivery.host.not_in(full_hosts))
            .order_by(WebhookDelivery.due_at)
            .limit(_DUE_PER_LOOK)
        )
        async with self._database.read() as connection:
            return [(_key(row), row.host) for row in await connection.execute(query)]

    async def _begin(self, chosen: Sequence[Key]) -> list[Delivery]:
        # Locked rows are skipped, not waited for: another process begins those. SQLite leaves the
        # lock out; there the transaction is exclusive.
        free = select(*_KEY_COLUMNS).where(_KEY.in_(chosen), *_is_due())
        begin = (
            update(WebhookDelivery)
            .where(_KEY.in_(free.with_for_update(skip_locked=True)))
            .values(attempts=WebhookDelivery.attempts + 1, due_at=datetime.now(UTC) + self._lease)
            .returning(*_KEY_COLUMNS, WebhookDelivery.attempts)
        )
        async with self._database.write() as connection:
            begun = {_key(row): row.attempts for row in await connection.execute(begin)}
            if not begun:
                return []
            deliveries = [
                _delivery(row, begun[_key(row)])
                for row in await connection.execute(_CONTENT.where(_KEY.in_(list(begun))))
            ]
            # An event that was stored while its run was being deleted has nobody to tell of.
            if gone := begun.keys() - {delivery.key for delivery in deliveries}:
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
                WebhookDelivery.role == bindparam("the_role"),
                WebhookDelivery.attempts == bindparam("the_attempt"),
                WebhookDelivery.status == DeliveryStatus.PENDING,
            )
            .values({name: bindparam(name) for name in _RECORDED})
        )
        now = datetime.now(UTC)
        changes = [
            {
                "the_run": attempted.delivery.key[0],
                "the_seq": attempted.delivery.key[1],
                "the_role": attempted.delivery.key[2],
                "the_attempt": attempted.delivery.attempt,
                "status": attempted.status,
                "due_at": attempted.due_at,
                "last_result": attempted.result,
                "attempted_at": now,
            }
            # In one order, as runs are deleted with their deliveries: no deadlock.
            for attempted in sorted(all_attempted, key=lambda one: one.delivery.key)
        ]
        await connection.execute(statement, changes)
        return [None] * len(all_attempted)


_RECORDED: Final = ("status", "due_at", "last_result", "attempted_at")

_CONTENT: Final = (
    select(
        *_KEY_COLUMNS,
        WebhookDelivery.host,
        RunEvent.type,
        RunEvent.data,
        RunEvent.at,
        UserRun.webhooks,
        UserRun.meta,
        UserRun.crew,
        UserRun.status,
        UserRun.outputs,
        UserRun.raw_result,
        UserRun.usage,
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


def _key(row: Any) -> Key:
    return row.run_id, row.seq, row.role


def _delivery(row: Any, attempt: int) -> Delivery:
    role: WebhookKind = row.role
    snapshot = EventSnapshot(
        **{field.name: getattr(row, field.name) for field in fields(EventSnapshot)}
    )
    webhook = webhooks_of(row.webhooks)[role]
    return Delivery(_key(row), attempt, row.host, webhook, body(role, snapshot))


def _host_and_port(url: str) -> str:
    parsed = URL(url)
    return f"{parsed.raw_host}:{parsed.port}"
