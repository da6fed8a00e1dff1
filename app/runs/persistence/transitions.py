"""The table of transitions: every change of a run's state after its submission.

| transition | from | to | event |
|---|---|---|---|
| Claim | queued, running with an expired lease or held by the queue | running | run.running |
| Settle | queued, running, awaiting_human | succeeded, failed, cancelled | run. and the state |
| Pause | running | awaiting_human | run.awaiting_human |
| Resume | awaiting_human | queued | run.resumed |
| Retry | failed, cancelled | queued | run.queued |
| AddProgress | cancelled | cancelled | none |

To cancel is to settle as cancelled, whatever attempt is under way. The event goes to the webhooks
of the run that subscribe to it (`webhooks.payloads.SUBSCRIBED_EVENTS`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Generic, Self, TypeVar
from uuid import UUID

from sqlalchemy import Row, Text, cast
from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller, counted_name
from app.db import current_time
from app.json_decoding import decode_stored
from app.runs.call_records import CallBatch
from app.runs.errors import LimitReached
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.human_input import HumanInput
from app.runs.models import UserRun
from app.runs.persistence.quotas import TokenUsage, admit_again
from app.runs.persistence.statements import change, locked, store_calls, store_events
from app.runs.records import (
    IN_FLIGHT,
    QUEUES,
    UNSETTLED,
    ClaimedRun,
    Outcome,
    ReviewDecision,
    RunStatus,
    Settlement,
    UsageCounts,
    has_lost_worker,
)
from app.runs.secrets import NOT_STORED
from app.telemetry.tracing import TraceHeaders

# As text, which the task of the run decodes: a transaction claims many runs.
_INPUTS: Final = cast(UserRun.inputs, Text).label("inputs")


@dataclass(frozen=True, slots=True)
class Applied:
    """A run after a transition was applied to it, or refused.

    `row` is the run's row before; None if the run is unknown or another attempt has begun.
    `status` is the state that the run has now. `event` is None if the transition was refused.
    `changed_at` is the time at which the run changed, by this transition or by one just before it.
    """

    row: Row[Any] | None = None
    status: RunStatus | None = None
    event: Event | None = None
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition(ABC):
    """A change of one run's state, with the states that allow it, its values and its event.

    `attempt` is the fencing token: the transition is refused if it is not the run's last attempt.
    None stands for any attempt. `calls` are stored with it, also if the transition is refused, as
    long as the run exists: what an attempt has called is never forgotten.
    """

    allowed: ClassVar[Sequence[RunStatus]]
    columns: ClassVar[Sequence[Any]]
    """The columns of the run's row that the methods read, beside those of every transition."""

    run_id: UUID
    attempt: int | None = None
    calls: CallBatch | None = None

    def permits(self, row: Row[Any], now: datetime) -> bool:
        """Whether a run in an allowed state permits this transition."""
        return True

    @abstractmethod
    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        """The new values of the run's row, `status` among them; always of the same columns."""

    @abstractmethod
    def event(self, row: Row[Any], now: datetime) -> Event | None:
        """The event that the transition stores, if it stores one."""

    @classmethod
    async def apply(
        cls, connection: AsyncConnection, transitions: Sequence[Self]
    ) -> Sequence[Applied]:
        """Apply transitions of this kind in their order: an operation of group commits.

        Locks the runs, checks each transition, changes the rows, and stores the events. Of several
        transitions of one run the first counts: no kind permits itself again.
        """
        now = current_time(connection)
        rows = await locked(
            connection, (*_COMMON, *cls.columns), [one.run_id for one in transitions]
        )
        statuses = {run_id: RunStatus(row.status) for run_id, row in rows.items()}
        changed: set[UUID] = set()
        applied: list[Applied] = []
        changes = []
        for one in transitions:
            row = rows.get(one.run_id)
            if row is None or one.attempt not in (None, row.attempt):
                applied.append(Applied())
                continue
            event, is_first = None, one.run_id not in changed
            if is_first and statuses[one.run_id] in one.allowed and one.permits(row, now):
                values = one.values(row, now)
                changes.append({"the_run": one.run_id, **values})
                changed.add(one.run_id)
                statuses[one.run_id] = values["status"]
                event = one.event(row, now)
            changed_at = now if one.run_id in changed else None
            applied.append(Applied(row, statuses[one.run_id], event, changed_at))
        await change(connection, changes)
        await store_events(
            connection,
            [(a.event, a.row.webhooks) for a in applied if a.event is not None and a.row],
        )
        await store_calls(
            connection,
            [one.calls for one in transitions if one.calls is not None and one.run_id in rows],
        )
        return applied


_COMMON = (UserRun.run_id, UserRun.status, UserRun.attempt, UserRun.webhooks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(Transition):
    """A worker begins an attempt, and holds the run until its lease ends.

    `fingerprint_of` gives the fingerprint of a crew's definition, which the event keeps. It gives
    None for a crew that is not registered here; its runs are refused.
    """

    allowed = IN_FLIGHT
    columns = (
        UserRun.worker,
        UserRun.lease_until,
        UserRun.crew,
        _INPUTS,
        UserRun.assumed_inputs,
        UserRun.created_at,
        UserRun.started_at,
        UserRun.owner,
        UserRun.end_user,
        UserRun.context_id,
        UserRun.stream,
        UserRun.human_input,
        UserRun.address,
        UserRun.run_metadata,
        UserRun.batch_id,
        UserRun.traceparent,
        UserRun.tracestate,
        UserRun.budget,
        UserRun.secrets,
        UserRun.priority,
        UserRun.not_before,
        UserRun.schedule_id,
        UserRun.due_at,
    )

    worker: str
    lease: timedelta
    fingerprint_of: Callable[[str], str | None]

    def permits(self, row: Row[Any], now: datetime) -> bool:
        expired = row.lease_until is None or row.lease_until < now
        mine = row.worker == self.worker and row.status == RunStatus.QUEUED
        is_free = expired or mine or row.worker in QUEUES
        return is_free and self.fingerprint_of(row.crew) is not None

    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        return {
            "status": RunStatus.RUNNING,
            "attempt": row.attempt + 1,
            "started_at": _started_at(row, now),
            "worker": self.worker,
            "lease_until": now + self.lease,
        }

    def event(self, row: Row[Any], now: datetime) -> Event:
        attempt = row.attempt + 1
        data = {"attempt": attempt, "fingerprint": self.fingerprint_of(row.crew)}
        return Event(
            self.run_id,
            EventSeq.first(attempt),
            EventType.RUN_RUNNING,
            data,
            _started_at(row, now),
        )


def claimed_run(applied: Applied, worker: str) -> ClaimedRun | None:
    """The run that a worker's Claim has claimed; None if the claim was refused."""
    row, event = applied.row, applied.event
    if row is None or event is None:
        return None
    return ClaimedRun(
        run_id=row.run_id,
        crew=row.crew,
        inputs=decode_stored(row.inputs),
        assumed_inputs=row.assumed_inputs,
        attempt=row.attempt + 1,
        created_at=row.created_at,
        started_at=event.at,
        worker=worker,
        owner=row.owner,
        end_user=row.end_user,
        stored_secrets=row.secrets,
        address=row.address,
        context_id=row.context_id,
        stream=bool(row.stream),
        webhooks=row.webhooks,
        human_input=row.human_input,
        metadata=row.run_metadata,
        batch_id=row.batch_id,
        trace=TraceHeaders(row.traceparent, row.tracestate) if row.traceparent else None,
        previous_started_at=row.started_at,
        is_takeover=has_lost_worker(RunStatus(row.status), row.worker, row.lease_until),
        budget=row.budget,
        priority=row.priority,
        not_before=row.not_before,
        schedule_id=row.schedule_id,
        due_at=row.due_at,
    )


def _started_at(row: Row[Any], now: datetime) -> datetime:
    # Keys of outputs contain it in seconds: each attempt's must be later.
    return now if row.started_at is None else max(now, row.started_at + timedelta(seconds=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle(Transition):
    """A run ends."""

    allowed = UNSETTLED
    columns = (
        UserRun.owner,
        UserRun.end_user,
        UserRun.address,
        UserRun.crew,
        UserRun.created_at,
        UserRun.started_at,
        UserRun.finished_at,
        UserRun.usage,
        UserRun.outputs,
        UserRun.run_metadata,
        UserRun.secrets,
    )

    outcome: Outcome

    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "status": outcome.status,
            "outputs": _merged(row, outcome),
            "raw_result": outcome.raw_result,
            "tasks": outcome.tasks,
            "usage": _larger(row.usage, outcome.usage),
            "error": outcome.error,
            "error_type": outcome.error_type,
            "lease_until": None,
            "address": None,
            "secrets": None if row.secrets is None else NOT_STORED,
            "finished_at": now,
        }

    def event(self, row: Row[Any], now: datetime) -> Event:
        outcome = self.outcome
        data: dict[str, Any] = {}
        if outcome.error:
            data = {"error": outcome.error, "error_type": outcome.error_type}
        if row.run_metadata:
            data["metadata"] = row.run_metadata
        type_ = EventType.of_status(outcome.status)
        return Event(self.run_id, EventSeq.last(row.attempt), type_, data, now)

    def usage(self, applied: Applied) -> TokenUsage | None:
        """The tokens to charge, if the run was settled just now and its caller has a quota."""
        row = applied.row
        if row is None or applied.event is None:
            return None
        return _charge(row, row.address, self.outcome.usage)


def settlement(applied: Applied) -> Settlement | None:
    """How a run is settled after a Settle; None if it is unknown or another attempt's."""
    if applied.row is None or applied.status is None:
        return None
    return Settlement(applied.status, applied.changed_at or applied.row.finished_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause(Transition):
    """An attempt ends with an output that a human is to review; the run then holds no worker."""

    allowed = (RunStatus.RUNNING,)
    columns = (
        UserRun.pauses,
        UserRun.owner,
        UserRun.end_user,
        UserRun.address,
        UserRun.created_at,
        UserRun.usage,
    )

    human: HumanInput
    used: UsageCounts | None

    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        return {
            "status": RunStatus.AWAITING_HUMAN,
            "human_input": self.human,
            "pauses": row.pauses + 1,
            "usage": _larger(row.usage, self.used),
            "lease_until": None,
        }

    def event(self, row: Row[Any], now: datetime) -> Event:
        human = self.human
        data = {
            "index": human.index,
            "name": human.task,
            "agent": human.agent,
            "output": human.output,
        }
        seq = EventSeq.paused(row.attempt)
        return Event(self.run_id, seq, EventType.RUN_AWAITING_HUMAN, data, now)

    def usage(self, applied: Applied) -> TokenUsage | None:
        """The tokens to charge, if the run was paused just now and its caller has a quota."""
        row = applied.row
        if row is None or applied.event is None:
            return None
        return _charge(row, row.address, self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(Transition):
    """A human has reviewed the awaited output: the run is queued again, for this worker."""

    allowed = (RunStatus.AWAITING_HUMAN,)
    columns = (UserRun.human_input,)

    worker: str
    lease: timedelta
    decision: ReviewDecision

    def permits(self, row: Row[Any], now: datetime) -> bool:
        human: HumanInput | None = row.human_input
        return human is not None and self.decision.task in (None, human.task)

    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        decision = self.decision
        return {
            "status": RunStatus.QUEUED,
            "human_input": row.human_input.reviewed(decision.feedback, decision.approve),
            "webhooks": {**row.webhooks, **decision.webhooks},
            "worker": self.worker,
            "lease_until": now + self.lease,
        }

    def event(self, row: Row[Any], now: datetime) -> Event:
        human: HumanInput = row.human_input
        data = {
            "index": human.index,
            "name": human.task,
            "feedback": self.decision.feedback,
            "approve": self.decision.approve,
        }
        seq = EventSeq.resumed(human.attempt)
        return Event(self.run_id, seq, EventType.RUN_RESUMED, data, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(Transition):
    """A run that failed or was cancelled is queued again, for this worker, with its outputs.

    If its `not_before` has not passed, no worker holds it until then.

    It begins an attempt's range of event numbers, as the end of the run used the last number of the
    range before. Attempts before the retry don't count as failed. `address` is the caller's, if it
    has a quota.
    """

    allowed = (RunStatus.FAILED, RunStatus.CANCELLED)
    columns = (UserRun.not_before,)

    worker: str
    lease: timedelta
    address: str | None

    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        is_deferred = row.not_before is not None and row.not_before > now
        return {
            "status": RunStatus.QUEUED,
            "attempt": row.attempt + 1,
            "pauses": row.attempt + 1,
            "tasks": None,
            "error": None,
            "error_type": None,
            "finished_at": None,
            "address": self.address,
            "worker": None if is_deferred else self.worker,
            "lease_until": row.not_before if is_deferred else now + self.lease,
        }

    def event(self, row: Row[Any], now: datetime) -> Event:
        attempt = row.attempt + 1
        seq = EventSeq.first(attempt)
        return Event(self.run_id, seq, EventType.RUN_QUEUED, {"attempt": attempt}, now)


T = TypeVar("T", Resume, Retry)


@dataclass(frozen=True, slots=True)
class Resumption(Generic[T]):
    """A run to queue again; `limited` is the caller whose runs in flight are limited."""

    transition: T
    limited: Caller | None


async def resume_runs(
    connection: AsyncConnection, resumptions: Sequence[Resumption[Resume]]
) -> Sequence[Applied | LimitReached]:
    """Resume each run, or refuse it: an operation of group commits."""
    return await _queue_again(connection, Resume, resumptions)


async def retry_runs(
    connection: AsyncConnection, resumptions: Sequence[Resumption[Retry]]
) -> Sequence[Applied | LimitReached]:
    """Retry each run, or refuse it: an operation of group commits."""
    return await _queue_again(connection, Retry, resumptions)


async def _queue_again(
    connection: AsyncConnection, kind: type[T], resumptions: Sequence[Resumption[T]]
) -> Sequence[Applied | LimitReached]:
    limited = [(index, one.limited) for index, one in enumerate(resumptions) if one.limited]
    refusals = await admit_again(connection, [caller for _, caller in limited]) if limited else []
    refused = {index: no for (index, _), no in zip(limited, refusals, strict=True) if no}
    admitted = [one.transition for index, one in enumerate(resumptions) if index not in refused]
    applied = iter(await kind.apply(connection, admitted)) if admitted else iter(())
    return [refused.get(index) or next(applied) for index in range(len(resumptions))]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddProgress(Transition):
    """An attempt has stopped after its run was cancelled, and had captured more by then.

    `address` is the one that the run's row had when it was claimed.
    """

    allowed = (RunStatus.CANCELLED,)
    columns = (
        UserRun.owner,
        UserRun.end_user,
        UserRun.created_at,
        UserRun.usage,
        UserRun.outputs,
        UserRun.tasks,
    )

    outcome: Outcome
    address: str | None

    def values(self, row: Row[Any], now: datetime) -> dict[str, Any]:
        outcome = self.outcome
        return {
            "status": RunStatus.CANCELLED,
            "usage": _larger(row.usage, outcome.usage),
            "outputs": _merged(row, outcome),
            "tasks": outcome.tasks or row.tasks,
        }

    def event(self, row: Row[Any], now: datetime) -> None:
        return None

    def usage(self, applied: Applied) -> TokenUsage | None:
        """The tokens to charge, if the caller has a quota."""
        if applied.row is None or applied.changed_at is None:
            return None
        return _charge(applied.row, self.address, self.outcome.usage)


def _merged(row: Row[Any], outcome: Outcome) -> dict[str, str] | None:
    """The outputs to store: a run without success keeps what earlier attempts have saved."""
    if outcome.status is RunStatus.SUCCEEDED or not row.outputs:
        return outcome.outputs
    return {**row.outputs, **(outcome.outputs or {})}


def _larger(before: UsageCounts | None, used: UsageCounts | None) -> UsageCounts | None:
    """The usage to store: what a run has used is never forgotten."""
    return used if _total(used) >= _total(before) and used else before


def _charge(row: Row[Any], address: str | None, used: UsageCounts | None) -> TokenUsage | None:
    """The tokens that the run has used beyond those in its row, which are charged already.

    A row without an address is that of a caller without a quota.
    """
    tokens = _total(used) - _total(row.usage)
    if address is None or tokens <= 0:
        return None
    caller = row.owner or address
    callers = [caller, *([counted_name(caller, row.end_user)] if row.end_user else [])]
    return TokenUsage(callers, row.created_at.date(), tokens)


def _total(used: UsageCounts | None) -> int:
    return used.get("total_tokens", 0) if used else 0
