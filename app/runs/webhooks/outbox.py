"""The transactional outbox of webhooks: deliveries are committed with the events they report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection
from yarl import URL

from app.db import Database, GroupCommit, current_time, insert_new, notify
from app.runs.events.event import Event
from app.runs.models import RunEvent, UserRun, WebhookDelivery
from app.runs.records import DeliveryStatus, Webhook, WebhookKind, Webhooks, webhook_id
from app.runs.webhooks.delivery_slots import DeliverySlots, Receiver
from app.runs.webhooks.event_snapshot import EventSnapshot
from app.runs.webhooks.payloads import SUBSCRIBED_EVENTS, body
from app.telemetry.tracing import attempt_headers

# The number of due deliveries from which some are chosen.
_DUE_PER_QUERY: Final = 500
# The channel on which commits of new deliveries are notified.
_NEW_DELIVERIES: Final = "webhook_deliveries"

# Of a delivery: its run, its event, and the kind of the webhook.
Key = tuple[UUID, int, WebhookKind]
_KEY_COLUMNS: Final = (WebhookDelivery.run_id, WebhookDelivery.seq, WebhookDelivery.role)
_KEY: Final = tuple_(*_KEY_COLUMNS)


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt to send an event to a webhook; until its lease ends, no other one begins.

    `number` counts from 1, and is the fencing token of the attempt's result. `trace` are the
    headers that name the run's span, if the run has a trace.
    """

    key: Key
    crew: str
    number: int
    receiver: Receiver
    webhook: Webhook
    body: dict[str, Any]
    trace: Mapping[str, str]

    @property
    def webhook_id(self) -> str:
        """The same for every attempt, and for no other event."""
        return webhook_id(*self.key)


@dataclass(frozen=True, slots=True)
class Attempted:
    """The result of an attempt, as a short text; `due_at` is the time of the next attempt."""

    attempt: Attempt
    status: DeliveryStatus
    result: str
    due_at: datetime | None


async def put_in_outbox(
    connection: AsyncConnection, events: Iterable[tuple[Event, Webhooks]]
) -> None:
    """Add a delivery for each webhook that subscribes to an event of its run.

    Part of the transaction that stores the events; without webhooks, no statement is executed.
    """
    now = current_time(connection)
    rows = [
        {
            "run_id": event.run_id,
            "seq": event.seq,
            "event": event.type,
            "role": kind,
            "host": _host_and_port(webhook.url),
            "status": DeliveryStatus.PENDING,
            "attempts": 0,
            "due_at": now,
            "created_at": now,
        }
        for event, webhooks in events
        for kind, webhook in webhooks.items()
        if event.type in SUBSCRIBED_EVENTS[kind]
    ]
    if rows:
        await insert_new(connection, WebhookDelivery, rows)
        notify(connection, _NEW_DELIVERIES)


class Outbox:
    """The due deliveries, each claimed by one sender at a time.

    Every method raises DatabaseUnavailable when the database can't be queried.
    """

    def __init__(self, database: Database, *, lease_seconds: float) -> None:
        self._database = database
        self._lease = timedelta(seconds=lease_seconds)
        self._now = database.clock.now
        self._writes = GroupCommit(database)

    async def claim(self, slots: DeliverySlots) -> list[Attempt]:
        """Begin attempts at due deliveries for which there are slots.

        Owners get slots in turn: each one's longest due delivery, then each one's second, and so
        on. No other sender claims the same deliveries until their lease ends.
        """
        due = await self._due(slots)
        chosen = [key for key, receiver in due if slots.acquire(receiver)]
        return await self._begin(chosen) if chosen else []

    async def record(self, attempted: Attempted) -> None:
        """Commit the result of an attempt; nothing if another has begun meanwhile."""
        await self._writes.submit(self._record_all, attempted)

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` whenever this process has committed new deliveries.

        Returns a function that stops listening.
        """
        return self._database.listen(_NEW_DELIVERIES, callback)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()

    def _is_due(self) -> tuple[Any, ...]:
        return (
            WebhookDelivery.status == DeliveryStatus.PENDING,
            WebhookDelivery.due_at <= self._now(),
        )

    async def _due(self, slots: DeliverySlots) -> list[tuple[Key, Receiver]]:
        turn = func.row_number().over(partition_by=_OWNER, order_by=WebhookDelivery.due_at)
        query = (
            select(*_KEY_COLUMNS, _OWNER, WebhookDelivery.host)
            .join_from(WebhookDelivery, UserRun, _OF_RUN, isouter=True)
            .where(
                *self._is_due(),
                _OWNER.not_in(slots.full_owners()),
                tuple_(_OWNER, WebhookDelivery.host).not_in(slots.full_receivers()),
            )
            .order_by(turn, WebhookDelivery.due_at)
            .limit(_DUE_PER_QUERY)
        )
        async with self._database.read() as connection:
            rows = await connection.execute(query)
            return [(_key(row), Receiver(row.owner, row.host)) for row in rows]

    async def _begin(self, chosen: Sequence[Key]) -> list[Attempt]:
        # Locked rows are skipped, not waited for: another process begins those attempts. SQLite
        # leaves the lock out; there the transaction is exclusive.
        free = select(*_KEY_COLUMNS).where(_KEY.in_(chosen), *self._is_due())
        begin = (
            update(WebhookDelivery)
            .where(_KEY.in_(free.with_for_update(skip_locked=True)))
            .values(attempts=WebhookDelivery.attempts + 1, due_at=self._now() + self._lease)
            .returning(*_KEY_COLUMNS, WebhookDelivery.attempts)
        )
        async with self._database.write() as connection:
            begun = {_key(row): row.attempts for row in await connection.execute(begin)}
            if not begun:
                return []
            attempts = [
                _attempt(row, begun[_key(row)])
                for row in await connection.execute(_CONTENT.where(_KEY.in_(list(begun))))
            ]
            # An event that was stored while its run was being deleted has no receiver any more.
            if gone := begun.keys() - {attempt.key for attempt in attempts}:
                await connection.execute(delete(WebhookDelivery).where(_KEY.in_(list(gone))))
        return attempts

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
        now = current_time(connection)
        changes = [
            {
                "the_run": attempted.attempt.key[0],
                "the_seq": attempted.attempt.key[1],
                "the_role": attempted.attempt.key[2],
                "the_attempt": attempted.attempt.number,
                "status": attempted.status,
                "due_at": attempted.due_at,
                "last_result": attempted.result,
                "attempted_at": now,
            }
            # In one order, as runs are deleted with their deliveries: no deadlock.
            for attempted in sorted(all_attempted, key=lambda one: one.attempt.key)
        ]
        await connection.execute(statement, changes)
        return [None] * len(all_attempted)


# A delivery of a run that was deleted has no owner; `claim` deletes it.
_OWNER: Final = func.coalesce(UserRun.owner, "").label("owner")
_OF_RUN: Final = UserRun.run_id == WebhookDelivery.run_id

_RECORDED: Final = ("status", "due_at", "last_result", "attempted_at")

_CONTENT: Final = (
    select(
        *_KEY_COLUMNS,
        WebhookDelivery.host,
        UserRun.owner,
        UserRun.started_at,
        UserRun.traceparent,
        UserRun.tracestate,
        RunEvent.type,
        RunEvent.data,
        RunEvent.at,
        UserRun.webhooks,
        UserRun.meta,
        UserRun.run_metadata.label("metadata"),
        UserRun.crew,
        UserRun.status,
        UserRun.outputs,
        UserRun.raw_result,
        UserRun.usage,
        UserRun.error,
        UserRun.error_type,
    )
    .join(UserRun, _OF_RUN)
    .join(
        RunEvent,
        (RunEvent.run_id == WebhookDelivery.run_id) & (RunEvent.seq == WebhookDelivery.seq),
    )
)


def _key(row: Any) -> Key:
    return row.run_id, row.seq, row.role


def _attempt(row: Any, number: int) -> Attempt:
    kind: WebhookKind = row.role
    snapshot = EventSnapshot(
        **{field.name: getattr(row, field.name) for field in fields(EventSnapshot)}
    )
    receiver = Receiver(row.owner, row.host)
    trace = attempt_headers(row.run_id, row.started_at, row.traceparent, row.tracestate)
    webhook = row.webhooks[kind]
    return Attempt(_key(row), row.crew, number, receiver, webhook, body(kind, snapshot), trace)


def _host_and_port(url: str) -> str:
    parsed = URL(url)
    return f"{parsed.raw_host}:{parsed.port}"
