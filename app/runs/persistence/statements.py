"""Statements that changes to runs are made of; each is part of a transaction of its caller."""

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, Select, Update, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import insert_into, insert_new
from app.runs.call_records import CallBatch, encode_calls, encode_contents
from app.runs.events.event import Event
from app.runs.models import (
    RUN_IDS,
    RelayedTokens,
    RunCalls,
    RunEvent,
    TokenSubscription,
    UserRun,
    WebhookDelivery,
)
from app.runs.records import AddedRun, Webhooks
from app.runs.webhooks.outbox import put_in_outbox

IdempotencyKey = tuple[str, str]
"""An owner and its key."""

_TABLES_OF_RUNS = (
    WebhookDelivery,
    RunEvent,
    RunCalls,
    TokenSubscription,
    RelayedTokens,
    UserRun,
)

_EXISTING: Final = select(UserRun.run_id).where(UserRun.run_id.in_(RUN_IDS))

ReportedEvent = tuple[Event, Webhooks, CallBatch | None]
"""An event with the webhooks of its run, and calls that are to be stored with it."""


async def locked(
    connection: AsyncConnection, columns: tuple[Any, ...], run_ids: Sequence[UUID]
) -> dict[UUID, Row[Any]]:
    """The rows of runs by id, locked until the transaction ends (in one order: no deadlock)."""
    rows = await connection.execute(_locking(columns), {"run_ids": run_ids})
    return {row.run_id: row for row in rows}


@cache
def _locking(columns: tuple[Any, ...]) -> Select[Any]:
    return (
        select(*columns)
        .where(UserRun.run_id.in_(RUN_IDS))
        .order_by(UserRun.run_id)
        .with_for_update()  # SQLite leaves it out; there the transaction is exclusive
    )


async def insert_runs(
    connection: AsyncConnection, rows: Sequence[Mapping[str, Any]], *, with_keys: bool
) -> None:
    """Insert new runs; `with_keys`, except those whose idempotency key has a run already."""
    if not with_keys:
        await connection.execute(insert(UserRun.__table__), rows)  # type: ignore[arg-type]
        return
    statement = insert_into(connection, UserRun).on_conflict_do_nothing(
        index_elements=[UserRun.owner, UserRun.idempotency_key]
    )
    await connection.execute(statement, rows)


async def change(connection: AsyncConnection, changes: Sequence[Mapping[str, Any]]) -> None:
    """Update each run (`the_run`) by its values; all changes name the same columns."""
    if changes:
        await connection.execute(_changing(tuple(changes[0])), changes)


@cache
def _changing(names: tuple[str, ...]) -> Update:
    values: dict[str, Any] = {name: bindparam(name) for name in names if name != "the_run"}
    table = update(UserRun.__table__)  # type: ignore[arg-type]
    return table.where(UserRun.run_id == bindparam("the_run")).values(values)


async def store_events(
    connection: AsyncConnection, events: Sequence[tuple[Event, Webhooks]]
) -> None:
    """Store events, each with the webhooks of its run; those get it through the outbox.

    Events that are stored already are left out.
    """
    rows = [
        {"run_id": e.run_id, "seq": e.seq, "type": e.type, "data": e.data, "at": e.at}
        for e, _ in events
    ]
    await insert_new(connection, RunEvent, rows)
    await put_in_outbox(connection, events)


async def store_calls(connection: AsyncConnection, batches: Sequence[CallBatch]) -> None:
    """Store calls of runs, except batches that are stored already."""
    rows = [
        {
            "run_id": batch.run_id,
            "attempt": batch.attempt,
            "number": batch.number,
            "calls": encode_calls(batch.calls),
            "contents": encode_contents(batch.contents) if batch.contents else None,
            "content_bytes": sum(call.content_bytes for call in batch.calls),
        }
        for batch in batches
    ]
    await insert_new(connection, RunCalls, rows)


async def append_events(
    connection: AsyncConnection, reported: Sequence[ReportedEvent]
) -> Sequence[None]:
    """Store the events, and the calls, of runs that still exist: an operation of group commits."""
    runs = await _existing(connection, {event.run_id for event, _, _ in reported})
    present = [one for one in reported if one[0].run_id in runs]
    await store_events(connection, [(event, webhooks) for event, webhooks, _ in present])
    await store_calls(connection, [calls for _, _, calls in present if calls is not None])
    return [None] * len(reported)


async def append_calls(connection: AsyncConnection, batches: Sequence[CallBatch]) -> Sequence[None]:
    """Store the calls of runs that still exist: an operation of group commits."""
    runs = await _existing(connection, {batch.run_id for batch in batches})
    await store_calls(connection, [batch for batch in batches if batch.run_id in runs])
    return [None] * len(batches)


async def _existing(connection: AsyncConnection, run_ids: Collection[UUID]) -> set[UUID]:
    """Those of the runs that exist: others may have been cancelled and deleted meanwhile."""
    return set(await connection.scalars(_EXISTING, {"run_ids": list(run_ids)}))


async def runs_by_key(
    connection: AsyncConnection, keys: Collection[IdempotencyKey]
) -> dict[IdempotencyKey, AddedRun]:
    """The run of each idempotency key that has one, and perhaps of others."""
    if not keys:
        return {}
    columns = (UserRun.owner, UserRun.idempotency_key, UserRun.run_id, UserRun.request_digest)
    owners, words = (set(part) for part in zip(*keys, strict=True))
    query = select(*columns).where(UserRun.owner.in_(owners), UserRun.idempotency_key.in_(words))
    return {
        (owner, key): AddedRun(run_id, False, digest)
        for owner, key, run_id, digest in await connection.execute(query)
    }


async def delete_runs(connection: AsyncConnection, run_ids: Sequence[UUID]) -> None:
    """Delete runs with all they have."""
    for table in _TABLES_OF_RUNS:
        await connection.execute(delete(table).where(table.run_id.in_(run_ids)))
