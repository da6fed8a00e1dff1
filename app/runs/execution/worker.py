"""Executes accepted runs: claims each, runs its crew, settles it, and deletes its outputs."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID

from msgspec import to_builtins
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    wait_random_exponential,
)

from app.crews.registry import Registry
from app.db import DatabaseUnavailable
from app.engine import (
    CallObserver,
    CrewFailed,
    CrewResult,
    EngineError,
    MemoryStore,
    ModelError,
    NoCrews,
    NoResult,
    Paused,
    Usage,
)
from app.logs import lines_of_run
from app.pacer import identify, metered, turn
from app.runs.call_records import MAX_CONTENT_BYTES, CallBatch, CallId, CallRecord
from app.runs.errors import BudgetExceeded
from app.runs.events.event import EventType
from app.runs.events.hub import EventHub
from app.runs.execution.call_metrics import CallMetrics
from app.runs.execution.call_recorder import CallRecorder
from app.runs.execution.calls import CallObservers
from app.runs.execution.capture import Capture
from app.runs.execution.checkpoints import Checkpoint, find_checkpoint, usage_in
from app.runs.execution.crew_limits import CrewLimits
from app.runs.execution.fair_slots import FairSlots
from app.runs.execution.progress import (
    Progress,
    ended,
    stored_output_names,
    stored_outputs,
    tasks_of,
    with_progress,
)
from app.runs.execution.spending import Accounts, Spending
from app.runs.execution.traces import RunTrace
from app.runs.human_input import HumanInput, paused_at
from app.runs.maintenance.sweeper import Sweeper
from app.runs.memories import Memories, MemoryOwnership
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import Attempt, RunRepository
from app.runs.records import (
    CANCELLED,
    ClaimedRun,
    DispatchedRun,
    Outcome,
    Run,
    RunStatus,
    Settlement,
    StalledRun,
    UsageCounts,
)
from app.runs.secrets import SecretsLost, SecretVault
from app.runs.texts import replace_surrogates
from app.telemetry import metrics
from storage import OutputKey, OutputStore, StorageError

if TYPE_CHECKING:
    from app.engine import Engine
    from app.telemetry.sdk import Tracing

logger = logging.getLogger("crew_capture.runs")

# One slot of so many is kept for owners that hold few.
_SLOTS_PER_RESERVED: Final = 32
# No run is received while more have not begun. So the backlog stays in the database, where owners
# have turns, and not in a worker that has claimed more than it can begin.
_MAX_BEGINNING: Final = 96
# After a claim of a run that has begun before, runs are received without this limit for so long.
_UNPACED_SECONDS: Final = 1.0

# The `error_type` in a run's row for each error that ends a crew.
_ERROR_TYPES: Mapping[type[Exception], str] = {
    BudgetExceeded: "budget_exceeded",
    SecretsLost: "secrets_lost",
    NoResult: "no_results",
    ModelError: "model_error",
    CrewFailed: "crew_error",
}

T = TypeVar("T")


@dataclass(slots=True)
class _ActiveRun:
    """A dispatched run. It waits for a slot first; `deadline` is set while its crew runs.

    `is_cancelled` is set by `cancel`. `used` counts the tokens while the crew runs, and `models`
    are the models that it calls; `used_before` are the tokens of earlier attempts. `progress`,
    `calls` and `spending` are set once the run is claimed. `acknowledge` is set for a run that a
    queue has delivered. `error` is an error of the service, and not of the crew, that ended the
    attempt. `trace` is that of the attempt, if runs have traces.
    """

    task: "asyncio.Task[Run | None]"
    dispatched_at: int = field(default_factory=time.time_ns)
    waits_for_slot: bool = True
    deadline: asyncio.Timeout | None = None
    is_cancelled: bool = False
    used: Usage = field(default_factory=Usage)
    used_before: Mapping[str, int] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    progress: Progress | None = None
    calls: CallRecorder | None = None
    spending: Spending | None = None
    acknowledge: Callable[[], None] | None = None
    error: BaseException | None = None
    trace: RunTrace | None = None

    @property
    def last_calls(self) -> CallBatch | None:
        """The calls of the attempt, which has ended, that are not stored yet."""
        return self.calls.last_batch() if self.calls is not None else None

    @property
    def usage(self) -> UsageCounts:
        """The tokens and calls of all attempts so far."""
        used: dict[str, Any] = to_builtins(self.used)
        if self.spending is not None:
            used |= self.spending.counts
        for name, count in self.used_before.items():
            used[name] = used.get(name, 0) + count
        return used

    @property
    def usage_if_any(self) -> UsageCounts | None:
        """The usage; None if nothing was used."""
        usage = self.usage
        return usage if any(usage.values()) else None

    def with_progress(self, outcome: Outcome) -> Outcome:
        """The outcome of a run without success, with its usage, tasks and outputs until then."""
        outcome = replace(outcome, usage=outcome.usage or self.usage_if_any)
        if self.progress is None:
            return outcome
        return with_progress(outcome, self.progress.outputs, self.progress.tasks(outcome.status))


class Worker:
    """Executes runs, `max_in_flight` at a time; the others wait for a slot.

    A crew may have limits of its own, within those of all.

    Every claimed run ends in one of the settled states, and only after that is committed are its
    stored outputs deleted. While the database is away, runs wait for it; none of their outputs is
    deleted.
    """

    def __init__(
        self,
        *,
        rows: RunRepository,
        queries: RunQueries,
        store: OutputStore,
        engine: "Engine | NoCrews",
        sweeper: Sweeper,
        events: EventHub,
        crews: Registry,
        accounts: Accounts,
        max_in_flight: int,
        timeout_seconds: float,
        keep_messages: bool = False,
        memories: Memories | None = None,
        memory_ownership: MemoryOwnership = "caller",
        tracing: "Tracing | None" = None,
        model_limits: CallObserver | None = None,
        vault: SecretVault | None = None,
        crew_limits: CrewLimits | None = None,
    ) -> None:
        self.crew_limits: Final = crew_limits
        """The limits of crews over all processes, if any crew has one."""
        self._model_limits = model_limits
        self.vault: Final = vault or SecretVault()
        """The secrets of the runs that this process has accepted."""
        self._tracing = tracing
        self._accounts = accounts
        self._rows = rows
        self._queries = queries
        self._store = store
        self._engine = engine
        self._sweeper = sweeper
        self._events = events
        self._timeout_seconds = timeout_seconds
        self._keep_messages = keep_messages
        self._memories = memories
        self._memory_ownership = {
            crew.name: crew.options.memory or memory_ownership for crew in crews
        }
        self.crews: Final = frozenset(crew.name for crew in crews)
        """The names of the registered crews: no run of another crew is dispatched here."""
        self._slots = FairSlots(max_in_flight, reserve=max_in_flight // _SLOTS_PER_RESERVED)
        self._slots_of_crews = {
            crew.name: FairSlots(limit)
            for crew in crews
            if (limit := crew.options.max_runs_in_flight)
        }
        self._timeouts_of_crews = {
            crew.name: seconds for crew in crews if (seconds := crew.options.run_timeout_seconds)
        }
        self._crews = crews
        self._active: dict[UUID, _ActiveRun] = {}
        self._beginning: set[UUID] = set()  # the delivered runs whose crews have not begun
        self._unpaced_until = 0.0
        self._changed = asyncio.Event()
        self._call_metrics = CallMetrics()
        self._database_is_away = False

    def __len__(self) -> int:
        """The number of dispatched runs: under way, or waiting for a slot."""
        return len(self._active)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._active

    @property
    def slots(self) -> FairSlots:
        """The slots of the runs that execute."""
        return self._slots

    @property
    def abandoned_threads(self) -> int:
        """The number of threads that still execute code of runs that have ended."""
        return self._engine.abandoned_threads

    def check_threads(self, crew: str) -> None:
        """Raise ThreadsExhausted if a run of a crew would not begin here for lack of threads."""
        if crew in self.crews:
            self._engine.check_threads(crew)

    @property
    def run_ids(self) -> set[UUID]:
        """The dispatched runs."""
        return set(self._active)

    def dispatch(self, run: DispatchedRun) -> None:
        """Execute an accepted run as soon as a slot is free, unless it is dispatched already.

        Owners whose runs wait get slots in turn, each for its run with the highest priority. Among
        an owner's runs of one priority, its end users get slots in turn.
        """
        if run.run_id not in self._active:
            task = asyncio.create_task(metered(run.owner, self._execute_in_slot, run))
            self._activate(run, _ActiveRun(task))

    def dispatch_delivery(self, run_id: UUID, crew: str, acknowledge: Callable[[], None]) -> None:
        """Execute a run whose id a queue has delivered, unless it is dispatched already.

        `acknowledge` is called once the run is claimed, or needs no claim here. The claim names the
        run's owner.
        """
        if run_id in self._active:
            acknowledge()
            return
        run = DispatchedRun(run_id, "", crew)
        task = asyncio.create_task(metered(None, self._execute_in_slot, run))
        self._beginning.add(run_id)
        self._activate(run, _ActiveRun(task, acknowledge=acknowledge))

    async def free_slots(self, crew: str) -> int:
        """Wait until runs of this crew are to be received, and return how many.

        Each would get a slot at once. They are received as fast as runs begin here.
        """
        while self._is_paced or not self.has_free_slot(crew):
            await self._changed.wait()
        return self._free_slots(crew)

    @property
    def _is_paced(self) -> bool:
        return len(self._beginning) > _MAX_BEGINNING and time.monotonic() >= self._unpaced_until

    def has_free_slot(self, crew: str) -> bool:
        """Whether a run of this crew would get a slot at once."""
        return self._free_slots(crew) > 0

    def _free_slots(self, crew: str) -> int:
        free = self._slots.count - len(self._active)
        of_crew = self._slots_of_crews.get(crew)
        return free if of_crew is None else min(free, of_crew.count - of_crew.used)

    def _activate(self, run: DispatchedRun, active: _ActiveRun) -> None:
        self._active[run.run_id] = active
        active.task.add_done_callback(lambda _: self._forget(run, active))

    async def wait(self, run_id: UUID) -> Run | None:
        """Wait for the end of a dispatched run; None if it does not end in this worker.

        Cancelling the wait does not cancel the run.
        """
        active = self._active.get(run_id)
        if active is None:
            return None
        try:
            return await asyncio.shield(active.task)
        except asyncio.CancelledError:
            if not active.task.cancelled():
                raise  # the caller was cancelled, not the run
            return None

    def cancel(self, run_id: UUID) -> bool:
        """Stop a run whose row is cancelled: its model connections close.

        A run that waits for a slot is no longer dispatched when this returns. Returns whether the
        crew runs here: the end of this attempt then deletes the run's outputs.
        """
        active = self._active.get(run_id)
        if active is None:
            return False
        active.is_cancelled = True
        runs_here = active.deadline is not None
        if active.waits_for_slot:
            del self._active[run_id]
            active.task.cancel()
            if active.acknowledge is not None:
                active.acknowledge()
        elif active.deadline is not None:
            active.deadline.reschedule(asyncio.get_running_loop().time())
        return runs_here

    def stop(self, run_id: UUID) -> None:
        """Stop a run that others hold. It stays accepted, with its outputs, for these."""
        if (active := self._active.get(run_id)) is not None:
            active.task.cancel()

    def cancelled(self, run_id: UUID, outcome: Outcome) -> Outcome | None:
        """The outcome of a cancelled run with its progress so far; None if no crew runs it here."""
        active = self._active.get(run_id)
        if active is None or active.deadline is None:
            return None
        return active.with_progress(outcome)

    def lacks_slot(self, run_id: UUID, crew: str) -> bool:
        """Whether a dispatched run waits because all slots are held, of the process or the crew."""
        if self.crew_limits is not None and self.crew_limits.is_waiting(run_id):
            return True
        active = self._active.get(run_id)
        slots = (self._slots, self._slots_of_crews.get(crew, self._slots))
        return active is not None and active.waits_for_slot and not all(one.free for one in slots)

    def models(self, run_id: UUID) -> Sequence[str]:
        """The models that a run has called here; none for a run that is not dispatched here."""
        active = self._active.get(run_id)
        return () if active is None else active.models

    def progress(self, run_id: UUID) -> Progress | None:
        """The progress of a run that this worker executes; None for others."""
        active = self._active.get(run_id)
        return None if active is None else active.progress

    def calls(self, run_id: UUID) -> Mapping[CallId, tuple[CallRecord, bytes | None]]:
        """The calls of a run that this worker executes, if they may not be stored yet."""
        active = self._active.get(run_id)
        return {} if active is None or active.calls is None else active.calls.calls()

    async def give_up(self, stalled: StalledRun, error: str) -> None:
        """Settle a run as failed whose workers were lost, with what it has until then."""
        with lines_of_run(stalled.run_id, stalled.crew, stalled.attempt):
            run = await self._persist(lambda: self._queries.get(stalled.run_id))
            if run is None:
                return
            outcome = await self._persist(
                lambda: self.with_stored_progress(run, _failed("worker_lost", error))
            )
            trace = None
            if run.has_lost_worker:
                trace = await self._trace_of_lost_attempt(run, run.attempt, run.started_at)
            with trace or nullcontext():
                await self._settle(stalled, outcome, keys=None, trace=trace)

    async def stored_outputs(
        self, run: Run, names: Collection[str] | None = None
    ) -> dict[str, str] | None:
        """The outputs of a run under way that the store can read. Raises DatabaseUnavailable.

        With `names`, no other outputs are read from the store.
        """
        events = await self._queries.history(run.run_id)
        return await stored_outputs(run, events, self._store, names)

    async def stored_output_names(self, run: Run) -> set[str]:
        """The names of the outputs that `stored_outputs` reads. Raises DatabaseUnavailable."""
        events = await self._queries.history(run.run_id)
        return await stored_output_names(run, events, self._store)

    async def with_stored_progress(self, run: Run, outcome: Outcome) -> Outcome:
        """The outcome with the usage, tasks and outputs that the events and the store have.

        For a run that no crew here executes. Raises DatabaseUnavailable.
        """
        events = await self._queries.history(run.run_id)
        described = self._engine.describe(run.crew).tasks if run.crew in self.crews else ()
        tasks = ended(tasks_of(run, described, events), outcome.status)
        outputs = await stored_outputs(run, events, self._store)
        return with_progress(replace(outcome, usage=usage_in(events)), outputs, tasks)

    @property
    def executed_runs(self) -> set[UUID]:
        """The runs whose crews execute here."""
        return {run_id for run_id, active in self._active.items() if active.deadline is not None}

    async def wait_until_idle(self) -> None:
        """Wait until no run is dispatched."""
        while self._active:
            await asyncio.wait([active.task for active in self._active.values()])

    async def drain(self, seconds: float) -> None:
        """Wait for the runs under way, then stop those that remain.

        A stopped run stays accepted with its outputs, for the next worker to claim.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._active and (seconds_left := deadline - loop.time()) > 0:
            tasks = [active.task for active in self._active.values()]
            await asyncio.wait(tasks, timeout=seconds_left)  # others may be dispatched meanwhile
        remaining = [active.task for active in self._active.values()]
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)
        if remaining:
            logger.warning("Stopped with %d run(s) unfinished; they stay accepted", len(remaining))

    def _forget(self, run: DispatchedRun, active: _ActiveRun) -> None:
        if self._active.get(run.run_id) is active:
            del self._active[run.run_id]
        self._begun(run.run_id)
        task = active.task
        if not task.cancelled() and (error := task.exception()) is not None:
            with lines_of_run(run.run_id, run.crew):
                logger.error("Run %s was not settled", run.run_id, exc_info=error)

    def _begun(self, run_id: UUID) -> None:
        """Wake what waits for free slots: a run has begun, or has ended."""
        self._beginning.discard(run_id)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _execute_in_slot(self, run: DispatchedRun) -> Run | None:
        # The crew's own slots first: a run that waits for them keeps no slot from other crews.
        of_crew = self._slots_of_crews.get(run.crew)
        limits = self.crew_limits if of_crew is not None else None
        turn_of = (run.owner, run.priority, run.end_user)
        with lines_of_run(run.run_id, run.crew):
            async with (
                of_crew.slot(*turn_of) if of_crew else nullcontext(),
                limits.slot(run.crew, run.run_id) if limits else nullcontext(),
                self._slots.slot(*turn_of),
            ):
                return await self._execute(run.run_id, self._active[run.run_id])

    async def _execute(self, run_id: UUID, active: _ActiveRun) -> Run | None:
        active.waits_for_slot = False
        if active.acknowledge is None:
            await turn()  # the runs of a batch are dispatched together; few are delivered together
        claimed = await self._persist(lambda: self._rows.claim(run_id))
        if active.acknowledge is not None:
            active.acknowledge()
            identify((claimed.owner or claimed.address or "") if claimed else "")
        if claimed is None:
            return None
        if claimed.attempt > 1:  # others like it, of a lost worker, may follow
            self._unpaced_until = time.monotonic() + _UNPACED_SECONDS
            self._begun(run_id)
        if self._tracing is not None:
            if claimed.is_takeover:
                lost = await self._trace_of_lost_attempt(
                    claimed, claimed.attempt - 1, claimed.previous_started_at
                )
                if lost is not None:
                    lost.end_lost_attempt()
            active.trace = RunTrace.begin(self._tracing, claimed, active.dispatched_at)
        with active.trace or nullcontext(), lines_of_run(run_id, claimed.crew, claimed.attempt):
            await turn()  # runs are claimed in groups
            if run_id in self._beginning:
                self._begun(run_id)
            return await self._execute_claimed(claimed, active)

    async def _execute_claimed(self, claimed: ClaimedRun, active: _ActiveRun) -> Run | None:
        calls = CallRecorder(claimed.run_id, claimed.attempt)
        spending = self._accounts.open(claimed, active.used)
        active.calls, active.spending = calls, spending
        capture = Capture(
            self._store, self._rows, self._events, claimed, calls, spending, active.trace
        )
        active.progress = capture.progress
        try:
            outcome = await self._attempt(claimed, capture, active, spending)
        except asyncio.CancelledError:  # this process stops
            if (last := calls.last_batch()) is not None:
                self._rows.append_calls_soon(last)
            raise
        if isinstance(outcome, HumanInput):
            await self._pause(claimed, outcome, active)
            return None
        if outcome.status is not RunStatus.SUCCEEDED:
            outcome = active.with_progress(outcome)
        # Earlier attempts have stored outputs under keys of their own.
        keys = capture.keys if claimed.attempt == 1 else None
        return await self._settle(claimed, outcome, keys, active, active.trace)

    async def _attempt(
        self, claimed: ClaimedRun, capture: Capture, active: _ActiveRun, spending: Spending
    ) -> Outcome | HumanInput:
        """Run the crew; every error becomes the outcome.

        Returns a HumanInput, the state to keep, if an output is to be reviewed by a human.
        Raises only CancelledError, in a process that stops: the run then stays accepted.
        """
        limit = self._timeouts_of_crews.get(claimed.crew, self._timeout_seconds)
        if active.is_cancelled:  # while it was claimed
            limit = 0.0
        try:
            async with asyncio.timeout(limit) as active.deadline:
                return await self._run_crew(claimed, capture, active, spending)
        except TimeoutError:
            if active.is_cancelled:
                return CANCELLED
            return _failed("run_timeout", f"the run took longer than {limit:g} s")
        except (EngineError, BudgetExceeded, SecretsLost) as error:
            return _failed(_ERROR_TYPES.get(type(error), "crew_error"), str(error))
        except StorageError as error:
            active.error = error
            return _failed("storage_unavailable", "an output could not be stored")
        except Exception as error:
            active.error = error
            return _failed("internal_error", "internal error")
        finally:
            active.deadline = None
            spending.close()

    async def _run_crew(
        self, claimed: ClaimedRun, capture: Capture, active: _ActiveRun, spending: Spending
    ) -> Outcome | HumanInput:
        checkpoint = await self._checkpoint(claimed)
        active.used_before = spending.before = checkpoint.usage
        spending.task_costs_before = checkpoint.task_costs
        spending.models_before = frozenset(
            model for replay in checkpoint.replays.values() for model in replay.models
        )
        if self._keep_messages and active.calls is not None:
            active.calls.keep_content(await self._content_bytes_left(claimed))
        capture.progress.describe(self._engine.describe(claimed.crew).tasks, checkpoint.replays)
        result = await self._engine.run(
            claimed.crew,
            self._prompt_inputs(claimed),
            capture,
            checkpoint.replays,
            reviews=checkpoint.reviews,
            on_step=capture.on_step,
            usage=active.used,
            models=active.models,
            calls=self._call_observers(active),
            on_guardrail=active.trace.add_guardrail if active.trace is not None else None,
            secrets=self.vault.of(claimed.run_id, claimed.stored_secrets),
            memory_store=self._memory_store(claimed),
            caller=(claimed.owner, claimed.end_user),
        )
        if isinstance(result, Paused):
            fingerprint = self._engine.describe(claimed.crew).fingerprint
            return paused_at(result, claimed.attempt, fingerprint, checkpoint.human_input)
        if active.trace is not None:
            active.trace.execution_mode = result.execution_mode
        return _outcome(result, active.usage, spending)

    async def _trace_of_lost_attempt(
        self, run: ClaimedRun | Run, attempt: int, started_at: datetime | None
    ) -> RunTrace | None:
        """The trace of an attempt whose worker was lost; None if runs have no traces."""
        if self._tracing is None or started_at is None:
            return None
        if isinstance(run, ClaimedRun):
            parent = run.trace
        else:
            parent = await self._persist(lambda: self._queries.trace_of(run.run_id))
        previous = None
        if attempt > 1:
            events = await self._persist(lambda: self._queries.history(run.run_id))
            starts = [event.at for event in events if event.type is EventType.RUN_RUNNING]
            previous = max((start for start in starts if start < started_at), default=None)
        return RunTrace.of_lost_attempt(self._tracing, run, attempt, started_at, parent, previous)

    def _memory_store(self, claimed: ClaimedRun) -> MemoryStore | None:
        """The stored memories that the run may use; None if its memories end with it."""
        if self._memories is None:
            return None
        return self._memories.of_run(claimed, self._memory_ownership[claimed.crew])

    def _call_observers(self, active: _ActiveRun) -> CallObservers:
        """The observers of the run's calls: the spending sets the costs that the recorder keeps."""
        observers: list[CallObserver | None] = [
            self._call_metrics,
            active.calls,
            active.spending,
            active.trace,
            self._model_limits,
        ]
        return CallObservers([one for one in observers if one is not None])

    def _prompt_inputs(self, claimed: ClaimedRun) -> dict[str, Any]:
        spec = self._crews.get(claimed.crew)
        return (
            spec.prompt_inputs(claimed.inputs, claimed.assumed_inputs) if spec else claimed.inputs
        )

    async def _content_bytes_left(self, claimed: ClaimedRun) -> int:
        if claimed.attempt == 1:
            return MAX_CONTENT_BYTES
        kept = await self._persist(lambda: self._queries.content_bytes(claimed.run_id))
        return MAX_CONTENT_BYTES - kept

    async def _checkpoint(self, claimed: ClaimedRun) -> Checkpoint:
        if claimed.attempt == 1:
            return Checkpoint()
        crew = self._engine.describe(claimed.crew)
        run = await self._persist(lambda: self._queries.get(claimed.run_id))
        saved = run.outputs if run is not None else None
        checkpoint = await self._persist(
            lambda: find_checkpoint(
                claimed.run_id, crew, self._queries, self._store, claimed.human_input, saved
            )
        )
        # Events lack what an attempt used after its last finished task; the row has it.
        counted = (run.usage if run is not None else None) or {}
        names = {**counted, **checkpoint.usage}
        usage = {n: max(counted.get(n, 0), checkpoint.usage.get(n, 0)) for n in names}
        return replace(checkpoint, usage=usage)

    async def _pause(self, claimed: ClaimedRun, human: HumanInput, active: _ActiveRun) -> None:
        """Commit that the run awaits a human's review: from then on no worker holds it."""
        usage, calls = active.usage_if_any, active.last_calls
        if active.trace is not None:
            active.trace.set_status(RunStatus.AWAITING_HUMAN)
        status = await self._persist(lambda: self._rows.pause(claimed, human, usage, calls))
        if status is RunStatus.CANCELLED:
            await self._add_progress(claimed, active.with_progress(CANCELLED))
            await self.clean_up(claimed.run_id)
        elif status is None:
            await self._drop(claimed, None)

    async def _settle(
        self,
        run: ClaimedRun | StalledRun,
        outcome: Outcome,
        keys: Iterable[OutputKey] | None,
        active: _ActiveRun | None = None,
        trace: RunTrace | None = None,
    ) -> Run | None:
        """Commit the outcome, then delete the outputs of the run.

        `keys` are those of all its outputs, where that is known. `trace` is that of the attempt.
        Returns the run as it stands, if this worker has claimed it; None as well if another attempt
        has begun meanwhile.
        """
        error = active.error if active is not None else None
        with trace.settling() if trace is not None else nullcontext():
            outcome, settlement = await self._commit(run, outcome, active)
        if trace is not None:
            trace.set_settlement(settlement, outcome.error_type)
        self.vault.forget(run.run_id)
        if settlement is None:
            await self._drop(run, keys, error)
            return None
        if settlement.status is RunStatus.CANCELLED:
            await self._add_progress(run, outcome)
            outcome = replace(CANCELLED, usage=outcome.usage, outputs=outcome.outputs)
        await self.clean_up(run.run_id, keys)
        if isinstance(run, StalledRun):
            return None
        settled = run.settled(outcome, settlement.finished_at)
        if settlement.status is RunStatus.CANCELLED:  # its row has the reason and the tasks
            return await self._persist(lambda: self._queries.get(run.run_id)) or settled
        return settled

    async def _add_progress(self, run: Attempt, outcome: Outcome) -> None:
        """Save the outputs, and charge the usage, of an attempt whose run was cancelled."""
        if isinstance(run, ClaimedRun) and (outcome.usage or outcome.outputs):
            await self._persist(lambda: self._rows.add_progress(run, outcome))

    async def _drop(
        self, run: Attempt, keys: Iterable[OutputKey] | None, error: BaseException | None = None
    ) -> None:
        """Drop the end of an attempt that the run's row does not know any more.

        Another attempt needs the outputs that are stored. A run that was settled and deleted
        meanwhile needs none, and nothing but this attempt knows of its last ones.
        """
        if await self._persist(lambda: self._queries.unsettled([run.run_id])):
            metrics.ATTEMPTS_DROPPED.inc()
            logger.warning(
                "Run %s was claimed again; its outcome here is dropped", run.run_id, exc_info=error
            )
        else:
            await self.clean_up(run.run_id, keys)

    async def _commit(
        self, run: Attempt, outcome: Outcome, active: _ActiveRun | None
    ) -> tuple[Outcome, Settlement | None]:
        """Commit the outcome; one that can't be saved becomes a failure, which can."""
        models = active.models if active is not None else ()
        error = active.error if active is not None else None
        calls = active.last_calls if active is not None else None

        async def settle(outcome: Outcome, cause: BaseException | None) -> Settlement | None:
            return await self._persist(
                lambda: self._rows.settle(run, outcome, models=models, cause=cause, calls=calls)
            )

        try:
            return outcome, await settle(outcome, error)
        except Exception as refused:  # about these very values
            failed = _failed("internal_error", "the outcome could not be saved")
            failed = replace(failed, usage=outcome.usage)
            return failed, await settle(failed, refused)

    async def clean_up(self, run_id: UUID, keys: Iterable[OutputKey] | None = None) -> None:
        """Delete a settled run's outputs; without `keys`, those that the store finds.

        Never fails: the next sweep removes the rest.
        """
        try:
            if keys is None:
                keys = [stored.key for stored in await self._store.find(run_id)]
            await self._store.delete(keys)
        except StorageError as error:
            logger.warning("Failed to cleanup %s: %s", run_id, error)
        if random.random() < self._sweeper.probability:  # noqa: S311 - not a secret
            self._sweeper.wake()

    async def _persist(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Retry while the database is away, however long: an accepted run is never dropped."""
        try:
            return await operation()  # a retrying object costs more than most writes
        except DatabaseUnavailable as error:
            if not self._database_is_away:  # thousands of runs may wait for it
                self._database_is_away = True
                logger.warning("The database is unavailable: %s; runs wait for it", error)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=5),
        ):
            with attempt:
                result = await operation()
        if self._database_is_away:
            self._database_is_away = False
            logger.info("The database is available again: runs continue")
        return result


def _outcome(result: CrewResult, usage: UsageCounts, spending: Spending) -> Outcome:
    blank = [t.name for t in result.tasks if not t.skipped and not t.text.strip()]
    if blank or not result.tasks:
        return _failed("no_results", f"nothing meaningful came back for {', '.join(blank)}")
    return Outcome(
        RunStatus.SUCCEEDED,
        outputs={task.name: replace_surrogates(task.text) for task in result.tasks},
        raw_result=replace_surrogates(result.raw),
        tasks=[
            {
                "name": task.name,
                "agent": task.agent,
                "status": "skipped" if task.skipped else "finished",
                "replayed": task.replayed,
                "started_at": task.started_at,
                "finished_at": task.finished_at,
                "models": task.models,
                "cost": spending.total_task_cost(index),
            }
            for index, task in enumerate(result.tasks)
        ],
        usage=usage,
    )


def _failed(error_type: str, error: str) -> Outcome:
    # PostgreSQL's text can't hold a NUL, and a model's message may.
    error = replace_surrogates(error).replace("\0", "")
    return Outcome(RunStatus.FAILED, error=error, error_type=error_type)
