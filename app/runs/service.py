"""The service of runs: submit, wait, inspect, list, subscribe, cancel, retry, resume, delete.

All entry points call it and pass a `Caller`: a run of another owner is an unknown run.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence, Set
from contextlib import aclosing, nullcontext
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4
from weakref import WeakValueDictionary

import msgspec

from app.access.callers import Caller
from app.budgets import Budget, smallest
from app.engine import InputRefused, ThreadsExhausted
from app.pacer import next_step, turn
from app.runs.batch_ids import run_id_in, time_ordered_id
from app.runs.call_records import (
    MAX_CONTENT_BYTES_PER_PAGE,
    CallContent,
    CallId,
    CallPage,
    CallRecord,
    call_id,
    content_of,
)
from app.runs.crew_info import CrewInfo
from app.runs.errors import (
    AwaitingHuman,
    IdempotencyConflict,
    InvalidInput,
    NotAwaitingHuman,
    NotRetryable,
    Overloaded,
    RunMoved,
    RunUnsettled,
    ShuttingDown,
    UnknownCrew,
    UnknownRun,
)
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub
from app.runs.execution.dispatch import Dispatcher
from app.runs.execution.progress import tasks_of
from app.runs.execution.spending import Accounts
from app.runs.execution.worker import Worker
from app.runs.inputs import (
    assumed_inputs,
    check_bounds,
    check_names,
    check_storable,
    clean_text,
    validate_inputs,
)
from app.runs.metadata import check_metadata
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.persistence.submissions import Condition
from app.runs.persistence.workers import WorkerRepository
from app.runs.records import (
    CANCELLED,
    IN_FLIGHT,
    MAX_DELAY,
    MAX_PRIORITY,
    MAX_REASON_CHARACTERS,
    UNSETTLED,
    AcceptedBatch,
    AddedRun,
    Delivery,
    DispatchedRun,
    LiveWorker,
    NewRun,
    QueueReason,
    ReviewDecision,
    Run,
    RunFilter,
    RunOptions,
    RunPage,
    RunStatus,
    UsageFilter,
    UsageRow,
    Webhooks,
)
from app.runs.shield import shielded
from app.runs.webhooks.payloads import FIELDS

if TYPE_CHECKING:
    from app.runs.webhooks.url_guard import UrlGuard
    from app.telemetry.sdk import Tracing

logger = logging.getLogger("crew_capture.runs")

_HEARTBEAT_SECONDS: Final = 60.0
_KEEP_WORKERS_SECONDS: Final = 1.0
# Of one caller at a time: a list reads the whole inputs of its runs, and holds a connection.
_MAX_LISTS: Final = 2
_CALL_CURSOR: Final = re.compile(r"([0-9]{1,9})\.([0-9]{1,9})")
# Of the name of an unknown crew.
_MAX_SHOWN_CHARACTERS: Final = 100
# Runs whose inputs are larger together are added alone.
_LARGE_BYTES: Final = 65_536


class RunService:
    """Accepts runs for this process's worker. A run is accepted when its row is committed."""

    def __init__(
        self,
        *,
        crews: Mapping[str, CrewInfo],
        check_state: Callable[[str, Mapping[str, Any]], None],
        rows: RunRepository,
        queries: RunQueries,
        workers: WorkerRepository,
        worker: Worker,
        dispatcher: Dispatcher,
        events: EventHub,
        accounts: Accounts,
        max_runs: int,
        url_guard: "UrlGuard | None" = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        """`check_state` raises InputRefused for an input that the state of a flow can't hold."""
        self._accounts = accounts
        self._crews = crews
        self._check_state = check_state
        self._rows = rows
        self._queries = queries
        self._workers = workers
        self._worker = worker
        self._dispatcher = dispatcher
        self._events = events
        self._max_runs = max_runs
        self._url_guard = url_guard
        self._tracing = tracing
        self._adding = 0
        self._lists: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._large: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.accepting = True
        """Whether new runs are accepted."""

    @property
    def abandoned_threads(self) -> int:
        """The number of this process's threads that still execute code of runs that have ended."""
        return self._worker.abandoned_threads

    def crews(self) -> list[CrewInfo]:
        """The available crews."""
        return list(self._crews.values())

    def crew(self, name: str) -> CrewInfo:
        """An available crew. Raises UnknownCrew."""
        crew = self._crews.get(name)
        if crew is None:
            shown = name[:_MAX_SHOWN_CHARACTERS]
            nearest = get_close_matches(shown, sorted(self._crews), 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else ""
            more = "..." if shown != name else ""
            raise UnknownCrew(f"no crew is named {shown}{more}{hint}")
        return crew

    async def submit(
        self,
        crew: str,
        given: Mapping[str, Any],
        caller: Caller,
        options: RunOptions | None = None,
    ) -> Run:
        """Accept a run and dispatch it: when this returns the run as it stands, it is committed.

        Raises:
            UnknownCrew: no crew of this name is registered.
            InvalidInput: an input is refused, the URL of a webhook is, or a budget in money because
                a model has no price.
            IdempotencyConflict: the key was used for another request.
            LimitReached: the caller's quota does not allow another run.
            Overloaded, ShuttingDown, DatabaseUnavailable: not now; nothing was accepted.
        """
        options = options or RunOptions()
        new = self._new_run(crew, given, caller, options, "")
        await self._check_webhooks(options.webhooks)
        (added,) = await self._accept([new], caller)
        return new.queued() if added.is_new else await self.get(added.run_id, caller)

    async def submit_if(
        self,
        condition: Condition,
        crew: str,
        given: Mapping[str, Any],
        caller: Caller,
        options: RunOptions,
    ) -> Run | None:
        """Accept and dispatch a run if `condition` is true in the transaction that commits it.

        None if it is false. Raises what `submit` raises. After LimitReached, changes that the
        condition has made are committed. After DatabaseUnavailable, the outcome is unknown.
        """
        new = self._new_run(crew, given, caller, options, "")
        await self._check_webhooks(options.webhooks)
        return new.queued() if await self._accept([new], caller, condition) else None

    async def check(
        self, crew: str, given: Mapping[str, Any], caller: Caller, options: RunOptions
    ) -> None:
        """Check a request for a run without accepting one. Raises UnknownCrew, InvalidInput."""
        self._new_run(crew, given, caller, options, "")
        await self._check_webhooks(options.webhooks)

    async def submit_many(
        self,
        crew: str,
        batch: Sequence[Mapping[str, Any]],
        caller: Caller,
        options: RunOptions | None = None,
    ) -> AcceptedBatch:
        """Accept a run for each of the inputs, in their order: all of them, or none.

        Raises what `submit` raises; InvalidInput names the index in the batch.
        """
        options = options or RunOptions()
        key, digest = options.idempotency_key, hashlib.sha256(b"batch")
        if key is not None:
            check_storable(key, "Idempotency-Key")
        options = replace(options, idempotency_key=None)
        new = []
        for index, given in enumerate(batch):
            new.append(self._new_run(crew, given, caller, options, f"inputs[{index}]."))
            if key is not None:
                digest.update(_request(new[-1], options.budget))
            await next_step()  # large inputs need milliseconds each
        await self._check_webhooks(options.webhooks)
        batch_id = time_ordered_id(self._rows.now())
        new = _as_batch(batch_id, new, key, digest.hexdigest() if key else None)
        first, *_ = await self._accept(new, caller)
        if not first.is_new:  # its request was equal to this one, so that it is of a batch
            batch_id = (await self.get(first.run_id, caller)).batch_id or batch_id
        return AcceptedBatch(batch_id, [run_id_in(batch_id, index) for index in range(len(batch))])

    async def wait(self, run: Run, caller: Caller) -> Run:
        """Wait for the end of a run that this process accepted, and return it as it stands then.

        However the run ends, it is returned: succeeded, failed or cancelled. A caller that goes
        away does not stop it.

        Raises:
            UnknownRun: there is no such run.
            AwaitingHuman: the run continues only after a human's review.
            RunMoved: this process stops or lost the run; another executes it.
        """
        if not caller.may_see(run.owner, run.end_user):
            raise UnknownRun(run.run_id)
        ended = await self._worker.wait(run.run_id)
        if ended is None and self._dispatcher.is_shared:
            async with aclosing(self.follow(run.run_id, caller)) as events:
                async for _ in events:
                    pass
        if ended is None:  # cancelled before it was claimed, or it does not end in this process
            ended = await self.get(run.run_id, caller)
            if ended.status is RunStatus.AWAITING_HUMAN:
                raise AwaitingHuman(run.run_id)
            if not ended.is_settled:
                raise RunMoved(run.run_id)
        return ended

    async def get(self, run_id: UUID, caller: Caller) -> Run:
        """The run as it stands. Raises UnknownRun, DatabaseUnavailable."""
        run = await self._queries.get(run_id)
        if run is None or not caller.may_see(run.owner, run.end_user):
            raise UnknownRun(run_id)
        return run

    async def is_over(self, run_id: UUID, caller: Caller, seq: int) -> bool:
        """Whether the run is settled, and `seq` is its last event. Raises UnknownRun."""
        run = await self.get(run_id, caller)
        return run.is_settled and seq >= EventSeq.last(run.attempt)

    async def page(
        self, matching: RunFilter, cursor: str | None, limit: int, caller: Caller
    ) -> RunPage:
        """The caller's runs without their outputs, newest first; all runs for an admin.

        With an idempotency key, only runs of the caller's own. Raises InvalidInput for a wrong
        cursor, key or metadata, DatabaseUnavailable.
        """
        if matching.idempotency_key is not None:
            check_storable(matching.idempotency_key, "idempotency_key")
        owner = caller.visible_owner if matching.idempotency_key is None else caller.owner or ""
        if owner is not None:
            if matching.owner not in (None, owner):
                return RunPage([], None)
            matching = replace(matching, owner=owner)
        if caller.end_user:
            matching = replace(matching, end_user=caller.end_user)
        matching = replace(matching, metadata=check_metadata(matching.metadata))
        async with self.list_slot(caller):
            return await self._queries.page(matching, cursor, limit)

    async def awaiting_human(self, caller: Caller) -> int:
        """How many of the caller's runs wait for a human, up to MAX_COUNTED_REVIEWS.

        Raises DatabaseUnavailable.
        """
        return await self._queries.awaiting_human(caller)

    def list_slot(self, caller: Caller) -> asyncio.Semaphore:
        """The caller's slots to read lists, which bound how many connections these hold."""
        return self._lists.setdefault(caller.name, asyncio.Semaphore(_MAX_LISTS))

    async def usage(
        self, matching: UsageFilter, group_by: Sequence[str], caller: Caller
    ) -> list[UsageRow]:
        """The usage of the caller's runs by these groups; of all runs for an admin.

        Raises InvalidInput for too many groups, DatabaseUnavailable.
        """
        if not caller.is_admin:
            if matching.key not in (None, caller.owner):
                return []
            matching = replace(matching, key=caller.owner or "")
        return await self._accounts.totals.query(matching, group_by)

    async def find(self, idempotency_key: str, caller: Caller) -> UUID | None:
        """The caller's run that was accepted with this key, if there is one."""
        return await self._queries.with_key(caller.owner or "", idempotency_key)

    async def cancel(self, run_id: UUID, caller: Caller, reason: str = "") -> None:
        """Settle a run as cancelled: its model connections are closed.

        It keeps the outputs of its finished tasks. A settled run stays as it is. The run's error
        shows the reason. Raises UnknownRun, InvalidInput, DatabaseUnavailable.
        """
        run = await self.get(run_id, caller)
        reason = clean_text(reason, "reason", MAX_REASON_CHARACTERS)
        outcome = replace(CANCELLED, error=f"cancelled: {reason}") if reason else CANCELLED
        if run.attempt and not run.is_settled:
            here = self._worker.cancelled(run_id, outcome)
            outcome = here or await self._worker.with_stored_progress(run, outcome)
        models = self._worker.models(run_id)
        status = await self._rows.cancel(run_id, outcome, models=models)
        if status is None:
            raise UnknownRun(run_id)
        if status is RunStatus.CANCELLED:
            self._worker.vault.forget(run_id)
            runs_here = self._worker.cancel(run_id)
            if not runs_here:
                self._dispatcher.cancel(run_id)
            if run.attempt and not runs_here:  # perhaps no worker executes it
                await self._worker.clean_up(run_id)

    async def retry(self, run_id: UUID, caller: Caller) -> None:
        """Queue a failed or cancelled run again: it continues after its finished tasks.

        A run that is queued or running stays as it is: repeats are safe.

        Raises:
            UnknownRun: there is no such run.
            UnknownCrew: its crew is not registered here; another process can retry it.
            NotRetryable: it succeeded, or waits for a human.
            LimitReached: the caller's quota does not allow another run in flight.
            Overloaded, ShuttingDown, DatabaseUnavailable: not now; nothing was changed.
        """
        run = await self.get(run_id, caller)
        if run.status in IN_FLIGHT:
            return
        if run.status not in (RunStatus.FAILED, RunStatus.CANCELLED):
            raise NotRetryable(run_id, run.status)
        if run.had_secrets:
            problem = "its secrets were deleted when it ended; submit it again"
            raise NotRetryable(run_id, run.status, problem)
        self._registered(run, "a retry")
        self._admit(1, {run.crew})
        # The run counts for its own owner, also if an admin retries it.
        limited = replace(caller, owner=run.owner or None, end_user=run.end_user)
        status = await shielded(self._retry_and_dispatch, run, limited)
        if status is None:
            raise UnknownRun(run_id)

    async def resume(self, decision: ReviewDecision, caller: Caller) -> Event:
        """Commit a human's review, dispatch the run again, and return the event.

        After an approval, the remaining tasks get the feedback as context. Otherwise the task is
        executed again with the feedback, and its new output awaits a review.

        Raises:
            UnknownRun: there is no such run.
            UnknownCrew: its crew is not registered here; another process can resume it.
            NotAwaitingHuman: it awaits no review, or that of another task.
            InvalidInput: the feedback is refused, or the URL of a webhook is.
            LimitReached: the caller's quota does not allow another run in flight.
            Overloaded, ShuttingDown, DatabaseUnavailable: not now; nothing was changed.
        """
        run = await self.get(decision.run_id, caller)
        if run.status is not RunStatus.AWAITING_HUMAN:
            raise NotAwaitingHuman(f"run {run.run_id} is {run.status} and waits for no human")
        crew = self._registered(run, "the review")
        feedback = clean_text(decision.feedback, "feedback", crew.max_input_chars)
        await self._check_webhooks(decision.webhooks)
        self._admit(1, {run.crew})
        # The run counts for its own owner and address, also if an admin reviews it.
        limited = replace(
            caller,
            owner=run.owner or None,
            address=run.address or None,
            end_user=run.end_user,
        )
        decision = replace(decision, feedback=feedback)
        resumed = await shielded(
            self._resume_and_dispatch, run, decision, limited if caller.quota else None
        )
        if resumed is None:
            human = run.human_input
            other = human is not None and decision.task not in (None, human.task)
            about = f"; it waits about {human.task}" if human is not None and other else ""
            raise NotAwaitingHuman(f"run {run.run_id} does not wait for that{about}")
        return resumed

    async def delete(self, run_id: UUID, caller: Caller) -> None:
        """Delete a settled run with all it has. Raises UnknownRun, RunUnsettled."""
        await self.get(run_id, caller)
        status = await self._rows.delete(run_id)
        if status is None:
            raise UnknownRun(run_id)
        if status in UNSETTLED:
            raise RunUnsettled(run_id, status)

    async def tasks(self, run: Run) -> list[dict[str, Any]]:
        """The run's tasks in their order: name, agent, status, times as far as known.

        If the crew is not registered here, they are the tasks that have begun.
        """
        if run.tasks is not None:
            return run.tasks
        crew = self._crews.get(run.crew)
        described = crew.outputs if crew is not None else ()
        if run.attempt == 0:
            return tasks_of(run, described, ())
        # Tasks before a retry, or of a crew that is not described, are those of earlier attempts.
        needs_all = run.outputs is not None or crew is None
        first_seq = -1 if needs_all else EventSeq.first(run.attempt)
        events = await self._queries.history(run.run_id, after_seq=first_seq)
        return tasks_of(run, described, events)

    async def workers(self) -> Sequence[LiveWorker]:
        """The processes that execute runs. Raises DatabaseUnavailable."""
        return await self._workers.live()

    async def queue_reason(self, run: Run) -> QueueReason | None:
        """Why a run is queued; None if it is not, or is about to be claimed.

        Of workers elsewhere, it is known within seconds. Raises DatabaseUnavailable.
        """
        if run.status is not RunStatus.QUEUED:
            return None
        if run.is_deferred_at(self._rows.now()):
            return "not_before"
        if run.run_id in self._worker:
            return "no_slot" if self._worker.lacks_slot(run.run_id, run.crew) else None
        live = await self._workers.live(max_age_seconds=_KEEP_WORKERS_SECONDS)
        capable = [one for one in live if run.crew in one.crews and not one.is_draining]
        if not capable:
            return "no_worker"
        return None if any(one.free_slots for one in capable) else "no_slot"

    async def outputs(
        self, run: Run, names: Collection[str] | None = None
    ) -> Mapping[str, str] | None:
        """The outputs of the run's finished tasks by their names; None without any.

        While the run is under way, they are those that this process can read. If it executes the
        run, that is all of them, otherwise those in a store that the processes share. With `names`,
        no other outputs are read from the store.
        """
        if run.is_settled or run.attempt == 0:
            return run.outputs
        progress = self._worker.progress(run.run_id)
        if progress is not None:
            return {**(run.outputs or {}), **(progress.outputs or {})} or None
        return await self._worker.stored_outputs(run, names)

    async def output_names(self, run: Run) -> Set[str]:
        """The names of the outputs that `outputs` gives. No output is read from the store."""
        is_here = self._worker.progress(run.run_id) is not None
        if run.is_settled or run.attempt == 0 or is_here:
            return set(await self.outputs(run) or ())
        return await self._worker.stored_output_names(run)

    async def calls(
        self,
        run_id: UUID,
        caller: Caller,
        *,
        cursor: str | None,
        limit: int,
        texts: bool = True,
    ) -> CallPage:
        """The calls of a run to models and tools so far, in the order of their starts.

        Without `texts`, those that are kept are left out. While another process executes the run,
        its last ones may be missing. Raises UnknownRun, InvalidInput for a wrong cursor,
        DatabaseUnavailable.
        """
        run = await self.get(run_id, caller)
        return await self.calls_of(run, caller, cursor=cursor, limit=limit, texts=texts)

    async def calls_of(
        self, run: Run, caller: Caller, *, cursor: str | None, limit: int, texts: bool = True
    ) -> CallPage:
        """`calls` of a run that the caller may see."""
        run_id = run.run_id
        after = (0, 0) if cursor is None else _call_position(cursor)
        async with self._lists.setdefault(caller.name, asyncio.Semaphore(_MAX_LISTS)):
            # In this order no call is missed: those here leave once they are stored.
            here = self._worker.calls(run_id)
            stored = await self._queries.calls(run_id)
            known = {key: call for key, (call, _) in here.items()} | stored
            rest = [known[key] for key in sorted(known) if key > after]
            page = _page_of(rest, limit) if texts else rest[:limit]
            contents = {key: content for key, (_, content) in here.items() if content and texts}
            if texts and (attempts := {call.attempt for call in page if call.content_bytes}):
                contents |= await self._queries.contents(run_id, attempts)
        shown: list[tuple[CallRecord, CallContent | None]] = []
        for call in page:
            content = contents.get(call_id(call))
            shown.append((call, content_of(content) if content is not None else None))
        last = "{}.{}".format(*call_id(page[-1])) if len(page) < len(rest) else None
        return CallPage(shown, last)

    async def deliveries(self, run: Run) -> list[Delivery]:
        """The deliveries to the run's webhooks, in the order of their events."""
        return await self._queries.deliveries(run.run_id) if run.webhooks else []

    async def subscribe(
        self,
        run_id: UUID,
        caller: Caller,
        *,
        after_seq: int,
        heartbeat_seconds: float,
        tokens: bool = True,
        texts: bool = False,
    ) -> AsyncGenerator[Sequence[Event]]:
        """The events of a run: those stored above a number, then new ones, until its end.

        Events that occur together are yielded together. With `tokens`, models stream their tokens
        during the subscription. With `texts`, the texts that they have streamed in tasks under way
        follow the stored events, as far as this process has them. Yields an empty sequence first,
        once the run is known to exist, and then as a heartbeat. Ends early for a caller that falls
        behind; it can subscribe again after the last event that it received. Raises UnknownRun.
        """
        with self._events.subscribe(
            run_id, tokens=tokens, after_seq=after_seq, heartbeat_seconds=heartbeat_seconds
        ) as subscriber:
            # In this order no event is missed.
            run = await self.get(run_id, caller)
            yield ()
            history = await self._queries.history(run_id, after_seq=after_seq)
            subscriber.prepend(history, self._events.streamed_texts(run_id) if texts else None)
            if run.is_settled:
                subscriber.end()
            while not subscriber.is_over:
                events_now = await subscriber.receive()
                if self._events.has_many_subscribers(run_id):
                    await turn()
                yield events_now

    async def follow(
        self, run_id: UUID, caller: Caller, *, after_seq: int = -1
    ) -> AsyncGenerator[Event]:
        """The events of a run, without tokens, until it is settled or awaits a human's review.

        `run.awaiting_human` is not yielded: get the run after the last event. Ends early as
        `subscribe` does. Raises UnknownRun.
        """
        subscription = self.subscribe(
            run_id, caller, after_seq=after_seq, heartbeat_seconds=_HEARTBEAT_SECONDS, tokens=False
        )
        async with aclosing(subscription):
            async for events in subscription:
                for event in events:
                    if event.type != EventType.RUN_AWAITING_HUMAN:
                        yield event
                    elif (await self.get(run_id, caller)).awaiting is not None:
                        return  # otherwise it was reviewed since

    async def unsettled_of_schedule(self, schedule_id: UUID) -> set[UUID]:
        """The runs of a schedule that are not settled yet. Raises DatabaseUnavailable."""
        return await self._queries.unsettled_of_schedule(schedule_id)

    async def _accept(
        self, runs: Sequence[NewRun], caller: Caller, condition: Condition | None = None
    ) -> Sequence[AddedRun]:
        """Commit and dispatch runs, also if the caller's request is cancelled meanwhile.

        Large runs of a caller are added one after another, so that other callers' runs share the
        next transaction.
        """
        is_large = sum(len(run.stored_inputs) for run in runs) > _LARGE_BYTES
        lock = self._large.setdefault(caller.name, asyncio.Lock()) if is_large else nullcontext()
        async with lock:
            return await shielded(self._add_and_dispatch, runs, caller, condition)

    async def _add_and_dispatch(
        self, runs: Sequence[NewRun], caller: Caller, condition: Condition | None
    ) -> Sequence[AddedRun]:
        self._admit(len(runs), {run.crew for run in runs})
        has_room = self._dispatcher.reserve(runs[0].crew, len(runs))
        self._adding += len(runs)
        runs = [self._with_stored_secrets(run) if run.secrets else run for run in runs]
        try:
            added = await self._rows.add(runs, caller, condition, is_held=has_room)
        finally:
            self._adding -= len(runs)
        if not has_room:
            self._dispatcher.join_backlog(len(added))
        for run, accepted in zip(runs, added, strict=bool(added)):
            if accepted.is_new:
                if run.secrets:
                    self._worker.vault.keep(run.run_id, run.secrets)
                if has_room and not run.is_deferred:
                    self._dispatcher.dispatch(
                        DispatchedRun(run.run_id, caller.name, run.crew, run.priority, run.end_user)
                    )
            elif accepted.request_digest != run.request_digest:
                raise IdempotencyConflict(accepted.run_id)
        return added

    def _with_stored_secrets(self, run: NewRun) -> NewRun:
        stored = self._worker.vault.encrypted(run.run_id, run.secrets)
        return replace(run, stored_secrets=stored)

    async def _retry_and_dispatch(self, run: Run, limited: Caller) -> RunStatus | None:
        retried = await self._rows.retry(run.run_id, limited)
        if retried.event is not None and not run.is_deferred_at(self._rows.now()):
            self._dispatcher.dispatch(DispatchedRun.of(run))
        return retried.status

    async def _resume_and_dispatch(
        self, run: Run, decision: ReviewDecision, limited: Caller | None
    ) -> Event | None:
        resumed = await self._rows.resume(decision, limited)
        if resumed is not None:
            self._dispatcher.dispatch(DispatchedRun.of(run))
        return resumed

    async def _check_webhooks(self, webhooks: Webhooks) -> None:
        for kind, webhook in webhooks.items():
            if self._url_guard is None:
                problem = "webhooks are off, because WEBHOOK_SECRET is not set here"
                raise InvalidInput(FIELDS[kind], problem)
            await self._url_guard.check(webhook.url, FIELDS[kind])

    def _registered(self, run: Run, request: str) -> CrewInfo:
        crew = self._crews.get(run.crew)
        if crew is None:
            raise UnknownCrew(
                f"run {run.run_id} is of the crew {run.crew}, which is not registered here; "
                f"send {request} to a service that has it"
            )
        return crew

    def _new_run(
        self, name: str, given: Mapping[str, Any], caller: Caller, options: RunOptions, prefix: str
    ) -> NewRun:
        """A run to accept. Raises InvalidInput; its field begins with `prefix`."""
        crew = self.crew(name)
        try:
            check_names(crew, given)
            inputs = validate_inputs(crew, given)
            if crew.execution_mode == "flow":
                self._check_state(name, inputs)
        except InputRefused as error:
            raise InvalidInput(f"{prefix}{error.field}", error.problem) from None
        except InvalidInput as error:
            if not prefix:
                raise
            raise error.within(prefix) from None
        if options.context_id is not None:
            check_storable(options.context_id, "contextId")
        if options.meta is not None:
            check_bounds("meta", options.meta, "meta")
        metadata = check_metadata(options.metadata)
        self._worker.vault.check(options.secrets)
        budget = self._budget(crew, caller, options)
        now = self._rows.now()
        _check_times(options, now)
        if options.idempotency_key is not None:
            check_storable(options.idempotency_key, "Idempotency-Key")
        new = NewRun(
            uuid4(),
            name,
            inputs,
            now,
            caller.owner or "",
            (caller.address or "") if caller.quota else None,
            stream=options.stream,
            idempotency_key=options.idempotency_key,
            webhooks=options.webhooks,
            meta=options.meta,
            context_id=options.context_id,
            assumed_inputs=assumed_inputs(crew, given),
            metadata=metadata or None,
            trace=self._tracing.headers_of_request() if self._tracing is not None else None,
            budget=budget,
            priority=options.priority,
            not_before=options.not_before,
            end_user=caller.end_user,
            schedule_id=options.scheduled.schedule_id if options.scheduled else None,
            due_at=options.scheduled.due_at if options.scheduled else None,
            secrets=options.secrets,
        )
        if options.idempotency_key is None:
            return new
        return replace(
            new, request_digest=hashlib.sha256(_request(new, options.budget)).hexdigest()
        )

    def _budget(self, crew: CrewInfo, caller: Caller, options: RunOptions) -> Budget | None:
        """The budget of a run. Raises InvalidInput: it is in money, and a model has no price."""
        of_day = caller.quota.cost_per_day if caller.quota else None
        budget = smallest([crew.budget, caller.budget, options.budget, Budget(cost_per_day=of_day)])
        if budget is not None and budget.needs_prices:
            for name in crew.models:
                if self._accounts.prices.of(name) is None:
                    problem = (
                        f"the crew {crew.name} calls the model {name}, which has no price in "
                        "PRICES_FILE, so that its cost can't be limited"
                    )
                    raise InvalidInput(budget.money_field, problem)
        return budget

    def _admit(self, count: int, crews: Set[str]) -> None:
        if not self.accepting:
            raise ShuttingDown("the service is shutting down")
        if self._dispatcher.load + self._adding + count > self._max_runs:
            raise Overloaded(f"at most {self._max_runs} runs are under way or wait at a time")
        try:
            for crew in crews:
                self._worker.check_threads(crew)
        except ThreadsExhausted as error:
            raise Overloaded(str(error)) from None


def _check_times(options: RunOptions, now: datetime) -> None:
    """Check when a run may begin. Raises InvalidInput."""
    if abs(options.priority) > MAX_PRIORITY:
        problem = f"{options.priority}; must be from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        raise InvalidInput("priority", problem)
    if options.not_before is not None and options.not_before - now > MAX_DELAY:
        raise InvalidInput("not_before", f"must be within {MAX_DELAY.days} days from now")


def _as_batch(
    batch_id: UUID,
    runs: Sequence[NewRun],
    idempotency_key: str | None,
    request_digest: str | None,
) -> list[NewRun]:
    """The runs as runs of a batch. Its idempotency key is that of its first run."""
    batch = [
        replace(
            run,
            run_id=run_id_in(batch_id, index),
            batch_id=batch_id,
            request_digest=request_digest,
        )
        for index, run in enumerate(runs)
    ]
    return [replace(batch[0], idempotency_key=idempotency_key), *batch[1:]]


def _request(run: NewRun, budget: Budget) -> bytes:
    """The parts of a request in which its repeats with the same idempotency key are equal.

    `budget` is the request's own.
    """
    request: list[Any] = [run.crew, run.inputs, run.stream, run.webhooks, run.meta]
    if run.metadata:  # otherwise the digest is that of versions without metadata
        request.append(run.metadata)
    if budget != Budget():
        request.append(["budget", budget])
    if run.priority or run.not_before is not None:
        request.append(["order", run.priority, run.not_before])
    if run.end_user:
        request.append(["end_user", run.end_user])
    return msgspec.json.encode(request)


def _page_of(calls: Sequence[CallRecord], limit: int) -> Sequence[CallRecord]:
    """The first of the calls: up to the limit, and up to as many bytes as a page has."""
    content_bytes = 0
    for count, call in enumerate(calls[:limit]):
        content_bytes += call.content_bytes
        if count and content_bytes > MAX_CONTENT_BYTES_PER_PAGE:
            return calls[:count]
    return calls[:limit]


def _call_position(cursor: str) -> CallId:
    if (found := _CALL_CURSOR.fullmatch(cursor)) is None:
        raise InvalidInput("cursor", "not one that a list gave as next_cursor")
    return int(found[1]), int(found[2])
