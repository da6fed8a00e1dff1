"""Submission: quotas and idempotency keys are checked, and the runs inserted as queued."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller
from app.db import current_time
from app.runs.errors import LimitReached
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.persistence.quotas import admit
from app.runs.persistence.statements import (
    IdempotencyKey,
    insert_runs,
    runs_by_key,
    store_events,
)
from app.runs.records import AddedRun, NewRun, RunStatus

Added = Sequence[AddedRun]
T = TypeVar("T")

# A run's inputs may have 1 MB, but those of the runs of a batch 20 KB on average.
_MAX_ROWS: Final = 250


@dataclass(frozen=True, slots=True)
class Submission:
    """Runs that are added together, for a worker; `limited` is the caller if it has a quota."""

    runs: Sequence[NewRun]
    worker: str
    lease: timedelta
    limited: Caller | None


async def add(
    connection: AsyncConnection, submissions: Sequence[Submission]
) -> Sequence[Added | LimitReached]:
    """Add the runs of each submission, or refuse them: an operation of group commits."""
    refused = await _refused(connection, submissions)
    accepted = [one for index, one in enumerate(submissions) if index not in refused]
    added = iter(await _insert(connection, accepted))
    return [refused.get(index) or next(added) for index in range(len(submissions))]


async def _refused(
    connection: AsyncConnection, submissions: Sequence[Submission]
) -> dict[int, LimitReached]:
    """The refusals of submissions beyond their caller's quota, by their index."""
    limited = [(index, one) for index, one in enumerate(submissions) if one.limited]
    if not limited:
        return {}
    known = await runs_by_key(connection, _keys([r for _, one in limited for r in one.runs]))
    requested = [
        (one.limited, sum((r.owner, r.idempotency_key) not in known for r in one.runs))
        for _, one in limited
        if one.limited is not None
    ]
    refusals = await admit(connection, requested)
    return {index: no for (index, _), no in zip(limited, refusals, strict=True) if no is not None}


async def _insert(
    connection: AsyncConnection, submissions: Sequence[Submission]
) -> Sequence[Added]:
    now = current_time(connection)
    runs = [run for one in submissions for run in one.runs]
    if not runs:
        return [[] for _ in submissions]
    rows = [
        {
            "run_id": run.run_id,
            "owner": run.owner,
            "address": run.address,
            "crew": run.crew,
            "inputs": run.inputs,
            "assumed_inputs": run.assumed_inputs,
            "created_at": run.created_at,
            "stream": run.stream,
            "idempotency_key": run.idempotency_key,
            "request_digest": run.request_digest,
            "webhooks": run.webhooks,
            "meta": run.meta,
            "context_id": run.context_id,
            "run_metadata": run.metadata,
            "status": RunStatus.QUEUED,
            "attempt": 0,
            "worker": one.worker,
            "lease_until": now + one.lease,
        }
        for one in submissions
        for run in one.runs
    ]
    keys = _keys(runs)
    for part in _parts(rows):
        await insert_runs(connection, part, with_keys=bool(keys))
    known = await runs_by_key(connection, keys)
    added = {run.run_id: _added(run, known) for run in runs}
    for new in _parts([run for run in runs if added[run.run_id].is_new]):
        await store_events(connection, [(_queued_event(run), run.webhooks) for run in new])
    return [[added[run.run_id] for run in one.runs] for one in submissions]


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Parts of a transaction: the event loop is blocked while the rows of one are encoded."""
    return (items[start : start + _MAX_ROWS] for start in range(0, len(items), _MAX_ROWS))


def _added(run: NewRun, known: dict[tuple[str, str | None], AddedRun]) -> AddedRun:
    """The run that stands for this one: the one in the database with its idempotency key."""
    stored = known.get((run.owner, run.idempotency_key))
    if stored is None:
        return AddedRun(run.run_id, True, run.request_digest)
    return AddedRun(stored.run_id, stored.run_id == run.run_id, stored.request_digest)


def _queued_event(run: NewRun) -> Event:
    return Event(run.run_id, EventSeq.first(0), EventType.RUN_QUEUED, {}, run.created_at)


def _keys(runs: Iterable[NewRun]) -> set[IdempotencyKey]:
    return {(run.owner, run.idempotency_key) for run in runs if run.idempotency_key}
