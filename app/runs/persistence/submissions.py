"""Submission: quotas and idempotency keys are checked, and the runs inserted as queued."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller
from app.db import current_time, in_parts
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
Condition = Callable[[AsyncConnection], Awaitable[bool]]
"""Decides in the transaction that would add a run whether it is added."""

# In one part of a transaction: the event loop is blocked while its rows are encoded. A run's inputs
# may have 1 MB, but those of the runs of a batch 10 KB on average.
_MAX_ROWS: Final = 250


@dataclass(frozen=True, slots=True)
class Submission:
    """Runs that are added together, for a worker; `limited` is the caller if it has a quota.

    Only the first run can have an idempotency key, which is that of all: with a known key, none is
    added. The transaction that adds them awaits `condition`, which may change other rows.
    """

    runs: Sequence[NewRun]
    worker: str
    lease: timedelta
    limited: Caller | None
    condition: Condition | None = None

    @property
    def key(self) -> IdempotencyKey | None:
        """The owner and its key, if there is one."""
        first = self.runs[0]
        return (first.owner, first.idempotency_key) if first.idempotency_key else None

    @property
    def independent(self) -> Sequence[NewRun]:
        """The runs whose addition depends on no other run."""
        return self.runs[:1] if self.key else self.runs

    @property
    def dependent(self) -> Sequence[NewRun]:
        """The other runs: with a key, they are added if the first one is."""
        return self.runs[1:] if self.key else ()


async def add(
    connection: AsyncConnection, submissions: Sequence[Submission]
) -> Sequence[Added | LimitReached]:
    """Add the runs of each submission, or refuse them: an operation of group commits.

    Nothing is added for a submission whose condition is false. Changes of a condition that was true
    are committed, also if the runs are refused.
    """
    results: dict[int, Added | LimitReached] = {}
    for index, one in enumerate(submissions):
        if one.condition is not None and not await one.condition(connection):
            results[index] = ()
    requested = {index: one for index, one in enumerate(submissions) if index not in results}
    refused = await _refused(connection, requested)
    accepted = {index: one for index, one in requested.items() if index not in refused}
    added = await _insert(connection, list(accepted.values()))
    results |= refused | dict(zip(accepted, added, strict=True))
    return [results[index] for index in range(len(submissions))]


async def _refused(
    connection: AsyncConnection, submissions: Mapping[int, Submission]
) -> dict[int, LimitReached]:
    """The refusals of submissions beyond their caller's quota, by their index."""
    limited = [(index, one) for index, one in submissions.items() if one.limited]
    if not limited:
        return {}
    known = await runs_by_key(connection, _keys([one for _, one in limited]))
    requested = [
        (one.limited, 0 if one.key in known else len(one.runs))
        for _, one in limited
        if one.limited is not None
    ]
    refusals = await admit(connection, requested)
    return {index: no for (index, _), no in zip(limited, refusals, strict=True) if no is not None}


async def _insert(
    connection: AsyncConnection, submissions: Sequence[Submission]
) -> Sequence[Added]:
    if not submissions:
        return []
    keys = _keys(submissions)
    rows = [row for one in submissions for row in _rows(connection, one, one.independent)]
    for part in in_parts(rows, _MAX_ROWS):
        await insert_runs(connection, part, with_keys=bool(keys))
    known = await runs_by_key(connection, keys)
    added = [_added(one, known) for one in submissions]
    accepted = [one for one, runs in zip(submissions, added, strict=True) if runs[0].is_new]
    rows = [row for one in accepted for row in _rows(connection, one, one.dependent)]
    for part in in_parts(rows, _MAX_ROWS):
        await insert_runs(connection, part, with_keys=False)
    for new in in_parts([run for one in accepted for run in one.runs], _MAX_ROWS):
        await store_events(connection, [(_queued_event(run), run.webhooks) for run in new])
    return added


def _rows(
    connection: AsyncConnection, submission: Submission, runs: Iterable[NewRun]
) -> list[dict[str, Any]]:
    lease_until = current_time(connection) + submission.lease
    # A deferred run has a lease that no worker holds and that ends when the run may begin.
    return [
        {
            "run_id": run.run_id,
            "owner": run.owner,
            "end_user": run.end_user,
            "secrets": run.stored_secrets,
            "address": run.address,
            "crew": run.crew,
            "inputs": run.stored_inputs,
            "assumed_inputs": run.assumed_inputs,
            "created_at": run.created_at,
            "stream": run.stream,
            "idempotency_key": run.idempotency_key,
            "request_digest": run.request_digest,
            "webhooks": run.webhooks,
            "meta": run.meta,
            "context_id": run.context_id,
            "run_metadata": run.metadata,
            "batch_id": run.batch_id,
            "traceparent": run.trace and run.trace.traceparent,
            "tracestate": run.trace and run.trace.tracestate,
            "budget": run.budget,
            "priority": run.priority,
            "not_before": run.not_before,
            "schedule_id": run.schedule_id,
            "due_at": run.due_at,
            "status": RunStatus.QUEUED,
            "attempt": 0,
            "worker": None if run.is_deferred else submission.worker,
            "lease_until": run.not_before if run.is_deferred else lease_until,
        }
        for run in runs
    ]


def _added(submission: Submission, known: Mapping[IdempotencyKey, AddedRun]) -> Added:
    """The runs that stand for these: with a known idempotency key, the run that has the key."""
    first = submission.runs[0]
    stored = known.get(submission.key) if submission.key else None
    if stored is not None and stored.run_id != first.run_id:
        return [stored] * len(submission.runs)
    return [AddedRun(run.run_id, True, run.request_digest) for run in submission.runs]


def _queued_event(run: NewRun) -> Event:
    return Event(run.run_id, EventSeq.first(0), EventType.RUN_QUEUED, {}, run.created_at)


def _keys(submissions: Iterable[Submission]) -> set[IdempotencyKey]:
    return {one.key for one in submissions if one.key}
