"""The writes of one worker to runs, committed in groups.

The row is the one authority over a run. Claiming a run raises `attempt`, the fencing token: every
later write names its attempt, and changes nothing once another has begun. Events are stored in the
transaction of the change that they report, and so are their webhooks (transactional outbox).
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.access.callers import Caller
from app.db import Database, GroupCommit
from app.pacer import turn
from app.runs.call_records import CallBatch
from app.runs.errors import LimitReached
from app.runs.events.event import Event
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import Relay, relay
from app.runs.human_input import HumanInput
from app.runs.models import UserRun
from app.runs.persistence.end_line import report_end
from app.runs.persistence.leases import Leases
from app.runs.persistence.quotas import TokenUsage, record_usage
from app.runs.persistence.statements import append_calls, append_events, delete_runs, locked
from app.runs.persistence.submissions import Condition, Submission, add
from app.runs.persistence.transitions import (
    AddProgress,
    Applied,
    Claim,
    Pause,
    Resume,
    Resumption,
    Retry,
    Settle,
    claimed_run,
    resume_runs,
    retry_runs,
    settlement,
)
from app.runs.records import (
    CANCELLED,
    QUEUES,
    UNSETTLED,
    AddedRun,
    ClaimedRun,
    NewRun,
    Outcome,
    ReviewDecision,
    RunStatus,
    Settlement,
    UsageCounts,
    Webhooks,
    waited_seconds,
)
from app.telemetry import metrics


class Attempt(Protocol):
    """An attempt at a run: `attempt` is its fencing token."""

    @property
    def run_id(self) -> UUID: ...

    @property
    def attempt(self) -> int: ...


class RunRepository:
    """Submits, claims, settles, pauses, resumes and deletes runs, for one worker.

    Each write is acknowledged after its commit, and its event published then.
    Every method raises DatabaseUnavailable when the database can't be reached.
    """

    def __init__(
        self,
        database: Database,
        events: EventHub,
        fingerprint_of: Callable[[str], str | None],
        *,
        worker: str,
        lease_seconds: float,
        holder: str | None = None,
    ) -> None:
        """`fingerprint_of` identifies a crew's definition; each attempt keeps its first one.

        It gives None for a crew that is not registered here: its runs are for other workers.
        `holder` holds the runs that are queued here: this worker by default, or QUEUE.
        """
        self._clock = database.clock
        self._events = events
        self._fingerprint_of = fingerprint_of
        self._writes = GroupCommit(database)
        # Apart from the writes to runs: its locks on callers are acquired in one order.
        self._usages = GroupCommit(database)
        self._worker = worker
        self._holder = holder or worker
        self._lease = timedelta(seconds=lease_seconds)
        self._leases = Leases(database, worker=worker, duration=self._lease)
        self._numbers = itertools.count(1)
        self.on_event: Callable[[UUID], None] = lambda _: None
        """Is called with the run of each event, or tokens, that other processes can read."""

    def now(self) -> datetime:
        """The database's time, as in all rows."""
        return self._clock.now()

    async def add(
        self,
        runs: Sequence[NewRun],
        caller: Caller | None = None,
        condition: Condition | None = None,
        *,
        is_held: bool = True,
    ) -> Sequence[AddedRun]:
        """Commit new runs as queued: all of them, or none.

        The holder holds them for the time of a lease. With `is_held` False, they are stalled at
        once, for any process to dispatch.

        Without any result, `condition` was false in their transaction, and none is added.

        Of an owner's runs with one idempotency key only the first is added, ever; the others get
        that one. Raises LimitReached: the caller's quota does not allow so many more.
        """
        limited = caller if caller is not None and caller.quota is not None else None
        lease = self._lease if is_held else timedelta()
        submission = Submission(runs, self._holder, lease, limited, condition)
        added = await self._writes.submit(add, submission)
        if isinstance(added, LimitReached):
            raise added
        for run, one in zip(runs, added, strict=bool(added)):
            if one.is_new:
                metrics.RUNS_SUBMITTED.inc(self._crew_label(run.crew))
        return added

    async def claim(self, run_id: UUID) -> ClaimedRun | None:
        """Begin an attempt at a run; None if another worker has it, or it is settled or unknown.

        None as well for a run of a crew that is not registered here.
        """
        claim = Claim(
            run_id=run_id,
            worker=self._worker,
            lease=self._lease,
            fingerprint_of=self._fingerprint_of,
        )
        applied = self._published(await self._writes.submit(Claim.apply, claim))
        claimed = claimed_run(applied, self._worker)
        if claimed is not None and applied.row is not None:
            crew = self._crew_label(claimed.crew)
            if claimed.attempt == 1:
                waited = waited_seconds(claimed.created_at, claimed.not_before, claimed.started_at)
                metrics.RUN_QUEUE_DURATION.observe(waited, crew)
            holder = applied.row.worker
            is_begun = applied.row.status == RunStatus.RUNNING
            if is_begun if holder in QUEUES else holder not in (None, self._worker):
                metrics.RUN_TAKEOVERS.inc(crew)
        return claimed

    async def settle(
        self,
        run: Attempt,
        outcome: Outcome,
        *,
        models: Sequence[str] = (),
        cause: BaseException | None = None,
        calls: CallBatch | None = None,
    ) -> Settlement | None:
        """Commit the outcome of an attempt, log it, and return how the run is settled now.

        `models` are those that the run has called, and `cause` an error behind the outcome. `calls`
        are the calls that are not stored yet; the same commit stores them.
        The status is another one than the outcome's if the run was settled before: cancelled
        meanwhile, or by an earlier call whose response was lost. None if the run is no longer this
        attempt's. Repeating the call is safe.
        """
        settle = Settle(run_id=run.run_id, attempt=run.attempt, outcome=outcome, calls=calls)
        return settlement(await self._settle(settle, models, cause))

    async def cancel(
        self, run_id: UUID, outcome: Outcome = CANCELLED, *, models: Sequence[str] = ()
    ) -> RunStatus | None:
        """Commit and log a run as cancelled unless it is settled; its status now, None if unknown.

        `outcome` holds what the run is known to have used and captured, and `models` what it is
        known to have called.
        """
        return (await self._settle(Settle(run_id=run_id, outcome=outcome), models)).status

    async def add_progress(self, run: ClaimedRun, outcome: Outcome) -> None:
        """Commit what an attempt at a cancelled run has captured until it stopped.

        Its usage is charged.
        """
        add = AddProgress(
            run_id=run.run_id, attempt=run.attempt, outcome=outcome, address=run.address
        )
        self._charge(add.usage(await self._writes.submit(AddProgress.apply, add)))

    async def pause(
        self,
        run: Attempt,
        human: HumanInput,
        usage: UsageCounts | None = None,
        calls: CallBatch | None = None,
    ) -> RunStatus | None:
        """Commit that the attempt ended with an output to review; the run's status now.

        `usage` is what the run has used so far, and `calls` are as those of `settle`. None
        if the run is no longer this attempt's. Repeating the call is safe.
        """
        pause = Pause(run_id=run.run_id, attempt=run.attempt, human=human, used=usage, calls=calls)
        applied = self._published(await self._writes.submit(Pause.apply, pause))
        self._charge(pause.usage(applied))
        return applied.status

    async def resume(self, decision: ReviewDecision, limited: Caller | None = None) -> Event | None:
        """Commit a human's review: the run is queued again, held by the holder.

        Returns the event, None if the run does not wait for that review. Raises LimitReached: the
        quota of `limited` does not allow another run in flight.
        """
        resume = Resume(
            run_id=decision.run_id, worker=self._holder, lease=self._lease, decision=decision
        )
        return (await self._queue_again(resume_runs, Resumption(resume, limited))).event

    async def retry(self, run_id: UUID, caller: Caller) -> Applied:
        """Commit that a failed or cancelled run is queued again, held by the holder.

        The event is None if the run is in another state. Raises LimitReached: the caller's quota
        does not allow another run in flight.
        """
        address = (caller.address or "") if caller.quota else None
        retry = Retry(run_id=run_id, worker=self._holder, lease=self._lease, address=address)
        limited = caller if caller.quota else None
        return await self._queue_again(retry_runs, Resumption(retry, limited))

    async def delete(self, run_id: UUID) -> RunStatus | None:
        """Delete a settled run with all it has; its status before, None if unknown.

        A run that is not settled stays.
        """
        return await self._writes.submit(_delete, run_id)

    def append_soon(
        self,
        event: Event,
        webhooks: Webhooks,
        calls: CallBatch | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Store an event, and calls, with the next group; then publish the event and call `then`.

        While the database is away they are kept for two minutes. An event that can't be stored is
        published all the same: it reports progress, and the run's end reports the result.
        """

        def publish() -> None:
            self._events.publish(event)
            self.on_event(event.run_id)
            then()

        # Published before it is stored, a subscriber that joins in between would miss the event.
        self._writes.submit_soon(append_events, (event, webhooks, calls), publish)

    def append_calls_soon(self, calls: CallBatch) -> None:
        """Store the calls of an attempt that stops with its process, with the next group."""
        self._writes.submit_soon(append_calls, calls, lambda: None)

    def relay_tokens(self, tokens: Event, after_seq: int) -> None:
        """Publish tokens of a model: in this process at once, to others with the next group.

        They follow the stored event `after_seq`.
        """
        self._events.publish(tokens)
        if subscribers := self._events.remote_subscribers.get(tokens.run_id):
            one = Relay(tokens, after_seq, next(self._numbers), subscribers)
            self._writes.submit_soon(relay, one, lambda: self.on_event(tokens.run_id))

    async def held(self) -> set[UUID]:
        """The runs in flight that this worker holds."""
        return await self._leases.held()

    async def renew_leases(self, run_ids: Collection[UUID]) -> None:
        """Renew the leases of those of these runs that this worker holds.

        The leases of other runs that it holds in the database end: it never learned of their
        commit.
        """
        await self._leases.renew(run_ids)

    async def release(self) -> None:
        """Release every run in flight that this worker holds, for any worker to claim."""
        await self._leases.release()

    async def aclose(self) -> None:
        """Wait for the writes under way."""
        await self._writes.aclose()
        await self._usages.aclose()

    async def _settle(
        self, settle: Settle, models: Sequence[str], cause: BaseException | None = None
    ) -> Applied:
        applied = self._published(await self._writes.submit(Settle.apply, settle))
        self._charge(settle.usage(applied))
        if applied.row is not None:
            crew = self._crew_label(applied.row.crew)
            try:
                await turn()  # hundreds of runs may end with one commit
            finally:
                report_end(settle, applied, models, cause, crew)
        return applied

    async def _queue_again(self, operation: Any, resumption: Resumption[Any]) -> Applied:
        applied = await self._writes.submit(operation, resumption)
        if isinstance(applied, LimitReached):
            raise applied
        return self._published(applied)

    def _crew_label(self, crew: str) -> str:
        """The name of a registered crew in metrics; others share one, so that they are few."""
        return crew if self._fingerprint_of(crew) is not None else metrics.OTHER

    def _charge(self, usage: TokenUsage | None) -> None:
        if usage is not None:
            self._usages.submit_soon(record_usage, usage, lambda: None)

    def _published(self, applied: Applied) -> Applied:
        if applied.event is not None:
            self._events.publish(applied.event)
            self.on_event(applied.event.run_id)
        return applied


async def _delete(
    connection: AsyncConnection, run_ids: Sequence[UUID]
) -> Sequence[RunStatus | None]:
    rows = await locked(connection, (UserRun.run_id, UserRun.status), run_ids)
    settled = [run_id for run_id, row in rows.items() if row.status not in UNSETTLED]
    await delete_runs(connection, settled)
    return [RunStatus(rows[run_id].status) if run_id in rows else None for run_id in run_ids]
