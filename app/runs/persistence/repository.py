"""Every change to the rows of runs and to their events.

The row is the one authority over a run. Taking a run raises `attempt`; every later write
names the attempt that it belongs to, and changes nothing once another has begun. What happened
in a run is stored in the same transaction as the change that it tells of, and so is what the run's
webhook is to be told.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller
from app.db import MAX_IDS_PER_STATEMENT, Database, GroupCommit, insert_new
from app.runs.errors import LimitReached
from app.runs.events.hub import EVENTS_PER_ATTEMPT, Event, EventHub
from app.runs.events.token_relay import Passed, pass_on
from app.runs.human_input import HumanInput, human_input
from app.runs.models import (
    CARRIED,
    UNSETTLED,
    RelayedTokens,
    RunEvent,
    RunStatus,
    TokenWatch,
    UserRun,
    WebhookDelivery,
)
from app.runs.persistence.quotas import TokenUsage, admit, record_usage
from app.runs.webhooks.outbox import put_in_outbox
from app.runs.webhooks.payloads import Webhooks, webhooks_of

logger = logging.getLogger("crew_capture.runs")


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run as it is accepted.

    `request_digest` tells whether two requests of an owner with one `idempotency_key` are the same.
    """

    run_id: UUID
    crew: str
    inputs: dict[str, Any]
    created_at: datetime
    owner: str = ""
    address: str | None = None
    stream: bool = False
    idempotency_key: str | None = None
    request_digest: str | None = None
    webhooks: Webhooks = field(default_factory=dict)
    meta: Any = None
    context_id: str | None = None


@dataclass(frozen=True, slots=True)
class AddedRun:
    """The run that stands for a request: a new one, or an earlier one with the same key."""

    run_id: UUID
    is_new: bool
    request_digest: str | None


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that this worker holds; `attempt` is what its later writes must name."""

    run_id: UUID
    crew: str
    inputs: dict[str, Any]
    attempt: int
    created_at: datetime
    started_at: datetime
    stream: bool = False
    webhooks: Webhooks = field(default_factory=dict)
    human_input: HumanInput | None = None


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


CANCELLED = Outcome(RunStatus.CANCELLED, error="cancelled", error_type="cancelled")


@dataclass(frozen=True, slots=True)
class _Request:
    """Runs that are added together; the caller, if there is a quota to keep to."""

    runs: Sequence[NewRun]
    limited: Caller | None


@dataclass(frozen=True, slots=True)
class ReviewDecision:
    """What a human says to a run that waits, and whom else it is to tell from now on.

    `task` None is whatever task it waits for.
    """

    run_id: UUID
    task: str | None
    feedback: str
    approve: bool
    webhooks: Webhooks = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Settlement:
    """`attempt` None settles whatever attempt is under way."""

    run_id: UUID
    attempt: int | None
    outcome: Outcome


class RunRepository:
    """The rows of runs, as one worker changes them.

    Writes of many runs are committed in groups, and each is acknowledged after its commit.
    Every method raises DatabaseUnavailable when the database can't be asked.
    """

    def __init__(
        self,
        database: Database,
        events: EventHub,
        fingerprint_of: Callable[[str], str],
        *,
        worker: str,
        lease_seconds: float,
    ) -> None:
        """`fingerprint_of` marks a crew's definition; each attempt keeps the one it began with."""
        self._database = database
        self._events = events
        self._fingerprint_of = fingerprint_of
        self._writes = GroupCommit(database)
        # Apart from the writes to runs: what locks callers there locks them in one order.
        self._tallies = GroupCommit(database)
        self._worker = worker
        self._lease = timedelta(seconds=lease_seconds)
        self._numbers = itertools.count(1)

    async def add(self, runs: Sequence[NewRun], caller: Caller | None = None) -> Sequence[AddedRun]:
        """Commit new runs as queued, in this worker's hands: all of them, or none.

        Of an owner's runs with one idempotency key only the first is added, ever; the others get
        that one. Raises LimitReached: the caller's quota does not allow so many more.
        """
        limited = caller if caller is not None and caller.quota is not None else None
        added = await self._writes.submit(self._add_all, _Request(runs, limited))
        if isinstance(added, LimitReached):
            raise added
        return added

    async def take(self, run_id: UUID) -> ClaimedRun | None:
        """Begin an attempt at a run; None if it is settled, unknown or another worker's."""
        taken = await self._writes.submit(self._take_all, run_id)
        if taken is not None:
            self._events.publish(self._running_event(taken))
        return taken

    async def settle(self, taken: ClaimedRun, outcome: Outcome) -> RunStatus | None:
        """Commit how the attempt ended, and return the status that the run has now.

        That is another one than the outcome's if the run was cancelled meanwhile. None if the run
        is no longer this attempt's. Saying the same again, after a lost answer, is safe.
        """
        return await self._settle(_Settlement(taken.run_id, taken.attempt, outcome))

    async def pause(self, taken: ClaimedRun, human: HumanInput) -> RunStatus | None:
        """Commit that the attempt has ended in waiting for a human; the run's status now.

        None if the run is no longer this attempt's. Saying the same again is safe.
        """
        status, event = await self._writes.submit(self._pause_all, (taken, human))
        if event is not None:
            self._events.publish(event)
        return status

    async def resume(self, answer: ReviewDecision) -> Event | None:
        """Commit what a human said: the run is queued again, in this worker's hands.

        Returns what happened, None if the run does not wait for that.
        """
        event = await self._writes.submit(self._resume_all, answer)
        if event is not None:
            self._events.publish(event)
        return event

    async def cancel(self, run_id: UUID) -> RunStatus | None:
        """Commit a run as cancelled unless it is settled; its status now, None if unknown."""
        return await self._settle(_Settlement(run_id, None, CANCELLED))

    async def delete(self, run_id: UUID) -> RunStatus | None:
        """Delete a settled run with all it has; its status before, None if unknown.

        A run that is not settled stays.
        """
        return await self._writes.submit(self._delete_all, run_id)

    def append_soon(self, event: Event, webhooks: Webhooks) -> None:
        """Store an event with the next group, then tell of it.

        While the database is away it is kept for two minutes. One that can't be stored is told all
        the same: it tells of progress, as the run's end does.
        """
        # EventSnapshot before it is stored, it would escape a watcher who comes in between.
        self._writes.submit_soon(
            self._append_all, (event, webhooks), lambda: self._events.publish(event)
        )

    def pass_on(self, tokens: Event, after_seq: int) -> None:
        """Tell of a model's words: here at once, to watchers elsewhere with the next group.

        They follow the stored event `after_seq`.
        """
        self._events.publish(tokens)
        if watchers := self._events.watched_elsewhere.get(tokens.run_id):
            passed = Passed(tokens, after_seq, next(self._numbers), watchers)
            self._writes.submit_soon(pass_on, passed, lambda: None)

    async def renew_leases(self, run_ids: Collection[UUID]) -> None:
        """Hold on to those of these runs that are this worker's for another lease.

        A run that is this worker's in the database alone, for it never heard that a commit
        succeeded, is let go of this way.
        """
        carried = list(run_ids)
        for start in range(0, len(carried), MAX_IDS_PER_STATEMENT):
            chunk = carried[start : start + MAX_IDS_PER_STATEMENT]
            await self._set_leases(_now() + self._lease, UserRun.run_id.in_(chunk))

    async def release(self) -> None:
        """Let go of every unsettled run of this worker: whoever looks next may take it."""
        await self._set_leases(None)

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()
        await self._tallies.aclose()

    async def _settle(self, settlement: _Settlement) -> RunStatus | None:
        status, event, tally = await self._writes.submit(self._settle_all, settlement)
        if event is not None:
            self._events.publish(event)
        if tally is not None:
            self._tallies.submit_soon(record_usage, tally, lambda: None)
        return status

    async def _set_leases(self, until: datetime | None, *which: ColumnElement[bool]) -> None:
        # Locked in the same order as everywhere: no deadlock.
        held = (
            select(UserRun.run_id)
            .where(UserRun.worker == self._worker, UserRun.status.in_(CARRIED), *which)
            .order_by(UserRun.run_id)
            .with_for_update()
        )
        leases = update(UserRun).where(UserRun.run_id.in_(held)).values(lease_until=until)
        async with self._database.write() as connection:
            await connection.execute(leases)

    async def _add_all(
        self, connection: AsyncConnection, requests: Sequence[_Request]
    ) -> Sequence[Sequence[AddedRun] | LimitReached]:
        refused = await _refused(connection, requests)
        accepted = [request for place, request in enumerate(requests) if place not in refused]
        added = iter(await self._insert(connection, [request.runs for request in accepted]))
        return [refused.get(place) or next(added) for place in range(len(requests))]

    async def _insert(
        self, connection: AsyncConnection, requests: Sequence[Sequence[NewRun]]
    ) -> Sequence[Sequence[AddedRun]]:
        lease_until = _now() + self._lease
        runs = [run for request in requests for run in request]
        if not runs:
            return [[] for _ in requests]
        rows = [
            {
                "run_id": run.run_id,
                "owner": run.owner,
                "address": run.address,
                "crew": run.crew,
                "inputs": run.inputs,
                "created_at": run.created_at,
                "stream": run.stream,
                "idempotency_key": run.idempotency_key,
                "request_digest": run.request_digest,
                "webhooks": run.webhooks or None,
                "meta": run.meta,
                "context_id": run.context_id,
                "status": RunStatus.QUEUED,
                "attempt": 0,
                "worker": self._worker,
                "lease_until": lease_until,
            }
            for run in runs
        ]
        keys = _keys(runs)
        if keys:
            dialect = sqlite if self._database.is_sqlite else postgresql
            statement = dialect.insert(UserRun).on_conflict_do_nothing(
                index_elements=[UserRun.owner, UserRun.idempotency_key]
            )
            await connection.execute(statement, rows)
        else:
            await connection.execute(insert(UserRun.__table__), rows)  # type: ignore[arg-type]
        first = await _runs_by_key(connection, keys)
        added = {
            run.run_id: first.get((run.owner, run.idempotency_key), _as_added(run)) for run in runs
        }
        await _store(
            connection,
            [
                Event(run.run_id, 0, "run.queued", {}, run.created_at)
                for run in runs
                if added[run.run_id].run_id == run.run_id
            ],
        )
        return [
            [
                AddedRun(
                    added[run.run_id].run_id,
                    added[run.run_id].run_id == run.run_id,
                    added[run.run_id].request_digest,
                )
                for run in request
            ]
            for request in requests
        ]

    async def _take_all(
        self, connection: AsyncConnection, run_ids: Sequence[UUID]
    ) -> Sequence[ClaimedRun | None]:
        now = _now()
        rows = await _locked(connection, UserRun.__table__.columns, run_ids)
        taken = [self._attempt(rows.get(run_id), now) for run_id in run_ids]
        begun = [run for run in taken if run is not None]
        changes = [
            {
                "the_run": run.run_id,
                "attempt": run.attempt,
                "status": RunStatus.RUNNING,
                "started_at": run.started_at,
                "worker": self._worker,
                "lease_until": now + self._lease,
            }
            for run in begun
        ]
        await _change(connection, changes)
        await _store(connection, [self._running_event(run) for run in begun])
        return taken

    def _attempt(self, row: Row[Any] | None, now: datetime) -> ClaimedRun | None:
        if row is None or row.status not in CARRIED:
            return None
        free = row.lease_until is None or row.lease_until < now
        mine = row.worker == self._worker and row.status == RunStatus.QUEUED
        if not (free or mine):
            return None
        started_at = now
        if row.started_at is not None:  # keys of outputs carry it: each attempt's is later
            started_at = max(now, row.started_at + timedelta(seconds=1))
        return ClaimedRun(
            row.run_id,
            row.crew,
            row.inputs,
            row.attempt + 1,
            row.created_at,
            started_at,
            bool(row.stream),
            webhooks_of(row.webhooks),
            human_input(row.human_input),
        )

    def _running_event(self, run: ClaimedRun) -> Event:
        data = {"attempt": run.attempt, "fingerprint": self._fingerprint_of(run.crew)}
        seq = run.attempt * EVENTS_PER_ATTEMPT
        return Event(run.run_id, seq, "run.running", data, run.started_at)

    async def _settle_all(
        self, connection: AsyncConnection, settlements: Sequence[_Settlement]
    ) -> Sequence[tuple[RunStatus | None, Event | None, TokenUsage | None]]:
        now = _now()
        columns = (
            UserRun.run_id,
            UserRun.status,
            UserRun.attempt,
            UserRun.webhooks,
            UserRun.owner,
            UserRun.address,
            UserRun.created_at,
        )
        rows = await _locked(connection, columns, [s.run_id for s in settlements])
        status = {run_id: RunStatus(row.status) for run_id, row in rows.items()}
        changes = []
        answers: list[tuple[RunStatus | None, Event | None, TokenUsage | None]] = []
        for settlement in settlements:
            row, event, tally = rows.get(settlement.run_id), None, None
            if row is None or settlement.attempt not in (None, row.attempt):
                answers.append((None, None, None))
                continue
            if status[row.run_id] in UNSETTLED:
                status[row.run_id] = settlement.outcome.status
                changes.append(_settled_values(settlement, now))
                event = _settled_event(settlement, row.attempt, now)
                tally = _tally(settlement.outcome, row)
            answers.append((status[row.run_id], event, tally))
        await _change(connection, changes)
        events = [event for _, event, _ in answers if event is not None]
        await _store(connection, events)
        await put_in_outbox(connection, [(e, webhooks_of(rows[e.run_id].webhooks)) for e in events])
        return answers

    async def _pause_all(
        self, connection: AsyncConnection, pauses: Sequence[tuple[ClaimedRun, HumanInput]]
    ) -> Sequence[tuple[RunStatus | None, Event | None]]:
        now = _now()
        columns = (
            UserRun.run_id,
            UserRun.status,
            UserRun.attempt,
            UserRun.pauses,
            UserRun.webhooks,
        )
        rows = await _locked(connection, columns, [taken.run_id for taken, _ in pauses])
        changes = []
        answers: list[tuple[RunStatus | None, Event | None]] = []
        for taken, human in pauses:
            row, event = rows.get(taken.run_id), None
            if row is None or row.attempt != taken.attempt:
                answers.append((None, None))
                continue
            status = RunStatus(row.status)
            if status is RunStatus.RUNNING:
                status, event = RunStatus.AWAITING_HUMAN, _awaiting_event(taken, human, now)
                changes.append(
                    {
                        "the_run": taken.run_id,
                        "status": status,
                        "human_input": human,
                        "pauses": row.pauses + 1,
                        "lease_until": None,
                    }
                )
            answers.append((status, event))
        await _change(connection, changes)
        events = [event for _, event in answers if event is not None]
        await _store(connection, events)
        await put_in_outbox(connection, [(e, webhooks_of(rows[e.run_id].webhooks)) for e in events])
        return answers

    async def _resume_all(
        self, connection: AsyncConnection, answers: Sequence[ReviewDecision]
    ) -> Sequence[Event | None]:
        now = _now()
        columns = (UserRun.run_id, UserRun.status, UserRun.human_input, UserRun.webhooks)
        rows = await _locked(connection, columns, [answer.run_id for answer in answers])
        events: list[Event | None] = []
        changes = []
        for answer in answers:
            # Once: of two answers in one group, the first counts.
            row = rows.pop(answer.run_id, None)
            waits = row is not None and row.status == RunStatus.AWAITING_HUMAN
            human = human_input(row.human_input) if row is not None and waits else None
            if row is None or human is None or answer.task not in (None, human.task):
                events.append(None)
                continue
            changes.append(
                {
                    "the_run": answer.run_id,
                    "status": RunStatus.QUEUED,
                    "human_input": human.answered(answer.feedback, answer.approve),
                    "webhooks": {**webhooks_of(row.webhooks), **answer.webhooks} or None,
                    "worker": self._worker,
                    "lease_until": now + self._lease,
                }
            )
            events.append(_resumed_event(answer, human, now))
        await _change(connection, changes)
        await _store(connection, [event for event in events if event is not None])
        return events

    async def _delete_all(
        self, connection: AsyncConnection, run_ids: Sequence[UUID]
    ) -> Sequence[RunStatus | None]:
        rows = await _locked(connection, (UserRun.run_id, UserRun.status), run_ids)
        settled = [run_id for run_id, row in rows.items() if row.status not in UNSETTLED]
        await delete_runs(connection, settled)
        return [RunStatus(rows[run_id].status) if run_id in rows else None for run_id in run_ids]

    async def _append_all(
        self, connection: AsyncConnection, events: Sequence[tuple[Event, Webhooks]]
    ) -> Sequence[None]:
        # A run may have been cancelled and deleted since.
        query = select(UserRun.run_id).where(
            UserRun.run_id.in_({event.run_id for event, _ in events})
        )
        runs = set(await connection.scalars(query))
        known = [(event, webhooks) for event, webhooks in events if event.run_id in runs]
        await _store(connection, [event for event, _ in known])
        await put_in_outbox(connection, known)
        return [None] * len(events)


async def delete_runs(connection: AsyncConnection, run_ids: Sequence[UUID]) -> None:
    """Delete runs with all they have."""
    for table in (WebhookDelivery, RunEvent, TokenWatch, RelayedTokens, UserRun):
        await connection.execute(delete(table).where(table.run_id.in_(run_ids)))


async def _refused(
    connection: AsyncConnection, requests: Sequence[_Request]
) -> dict[int, LimitReached]:
    """The places of the requests for more than their caller may have."""
    limited = [(place, request) for place, request in enumerate(requests) if request.limited]
    if not limited:
        return {}
    known = await _runs_by_key(
        connection, _keys([r for _, request in limited for r in request.runs])
    )
    asked = [
        (request.limited, sum((r.owner, r.idempotency_key) not in known for r in request.runs))
        for _, request in limited
        if request.limited is not None
    ]
    answers = await admit(connection, asked)
    return {place: no for (place, _), no in zip(limited, answers, strict=True) if no is not None}


def _keys(runs: Iterable[NewRun]) -> set[tuple[str, str]]:
    return {(run.owner, run.idempotency_key) for run in runs if run.idempotency_key}


def _tally(outcome: Outcome, row: Row[Any]) -> TokenUsage | None:
    """What a settled run has used, if its caller has a quota."""
    if row.address is None or not outcome.usage:
        return None
    name = row.owner or row.address
    return TokenUsage(name, row.created_at.date(), outcome.usage.get("total_tokens", 0))


def _as_added(run: NewRun) -> AddedRun:
    return AddedRun(run.run_id, True, run.request_digest)


async def _runs_by_key(
    connection: AsyncConnection, keys: Collection[tuple[str, str]]
) -> dict[tuple[str, str | None], AddedRun]:
    """The run of each owner's idempotency key, and perhaps of others."""
    if not keys:
        return {}
    columns = (UserRun.owner, UserRun.idempotency_key, UserRun.run_id, UserRun.request_digest)
    owners, words = (set(part) for part in zip(*keys, strict=True))
    query = select(*columns).where(UserRun.owner.in_(owners), UserRun.idempotency_key.in_(words))
    return {
        (owner, key): AddedRun(run_id, False, digest)
        for owner, key, run_id, digest in await connection.execute(query)
    }


# The last numbers of an attempt, so that they come after what it has told: it pauses, is resumed,
# and may be cancelled before the next begins.
_PAUSED, _RESUMED, _SETTLED = 3, 2, 1


def _last_seq(attempt: int, which: int) -> int:
    return (attempt + 1) * EVENTS_PER_ATTEMPT - which


def _awaiting_event(taken: ClaimedRun, human: HumanInput, now: datetime) -> Event:
    data = {
        "index": human.index,
        "name": human.task,
        "agent": human.agent,
        "output": human.output,
    }
    seq = _last_seq(taken.attempt, _PAUSED)
    return Event(taken.run_id, seq, "run.awaiting_human", data, now)


def _resumed_event(answer: ReviewDecision, human: HumanInput, now: datetime) -> Event:
    data = {
        "index": human.index,
        "name": human.task,
        "feedback": answer.feedback,
        "approve": answer.approve,
    }
    return Event(answer.run_id, _last_seq(human.attempt, _RESUMED), "run.resumed", data, now)


def _settled_event(settlement: _Settlement, attempt: int, now: datetime) -> Event:
    outcome = settlement.outcome
    data = {"error": outcome.error, "error_type": outcome.error_type} if outcome.error else {}
    seq = _last_seq(attempt, _SETTLED)
    return Event(settlement.run_id, seq, f"run.{outcome.status}", data, now)


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
        "address": None,
        "finished_at": now,
    }


async def _locked(
    connection: AsyncConnection, columns: Iterable[Any], run_ids: Sequence[UUID]
) -> dict[UUID, Row[Any]]:
    """The rows by run id, locked until the transaction ends (in one order: no deadlock)."""
    query = (
        select(*columns)
        .where(UserRun.run_id.in_(run_ids))
        .order_by(UserRun.run_id)
        .with_for_update()  # SQLite leaves it out; there the transaction is exclusive
    )
    return {row.run_id: row for row in await connection.execute(query)}


async def _change(connection: AsyncConnection, changes: list[dict[str, Any]]) -> None:
    """Update each row (`the_run`) by its values; all changes name the same columns."""
    if changes:
        columns: dict[str, Any] = {name: bindparam(name) for name in changes[0]}
        del columns["the_run"]
        statement = update(UserRun.__table__).where(  # type: ignore[arg-type]
            UserRun.run_id == bindparam("the_run")
        )
        await connection.execute(statement.values(columns), changes)


async def _store(connection: AsyncConnection, events: Sequence[Event]) -> None:
    rows = [
        {"run_id": e.run_id, "seq": e.seq, "type": e.type, "data": e.data, "at": e.at}
        for e in events
    ]
    await insert_new(connection, RunEvent, rows)


def _now() -> datetime:
    return datetime.now(UTC)
