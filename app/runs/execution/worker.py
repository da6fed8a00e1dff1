"""Carries accepted runs: takes each, runs its crew, settles it, cleans up after it."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from tenacity import (
    AsyncRetrying,
    before_sleep_log,
    retry_if_exception_type,
    wait_random_exponential,
)

from app.crews.registry import Registry
from app.db import DatabaseUnavailable
from app.engine import CrewFailed, CrewResult, Engine, EngineError, ModelError, NoResult, Paused
from app.runs.events.hub import EventHub
from app.runs.execution.capture import Capture
from app.runs.execution.checkpoints import Checkpoint, find_checkpoint
from app.runs.execution.fair_slots import FairSlots
from app.runs.human_input import HumanInput, paused_at
from app.runs.maintenance.sweeper import Sweeper
from app.runs.models import RunStatus
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import CANCELLED, ClaimedRun, Outcome, RunRepository
from app.runs.texts import replace_surrogates
from storage import OutputKey, OutputStore, StorageError

logger = logging.getLogger("crew_capture.runs")

# How a row names what the engine says went wrong.
_ERROR_TYPES: Mapping[type[EngineError], str] = {
    NoResult: "no_results",
    ModelError: "model_error",
    CrewFailed: "crew_error",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SettledRun:
    """A run that ended, as its row says."""

    run_id: UUID
    inputs: dict[str, Any]
    outcome: Outcome
    waited_seconds: float


class Worker:
    """Carries runs to their end, `max_in_flight` at a time; the others wait for their turn.

    A crew may have limits of its own, within those of all.

    A run that it took ends in one of the settled states, and only after that is committed are
    its stored outputs deleted. While the database is away, runs wait for it; nothing of theirs
    is deleted.
    """

    def __init__(
        self,
        *,
        rows: RunRepository,
        queries: RunQueries,
        store: OutputStore,
        engine: Engine,
        sweeper: Sweeper,
        events: EventHub,
        crews: Registry,
        max_in_flight: int,
        timeout_seconds: float,
    ) -> None:
        self._rows = rows
        self._queries = queries
        self._store = store
        self._engine = engine
        self._sweeper = sweeper
        self._events = events
        self._timeout_seconds = timeout_seconds
        self._slots = FairSlots(max_in_flight)
        self._slots_of_crews = {
            crew.name: FairSlots(limit)
            for crew in crews
            if (limit := crew.options.max_runs_in_flight)
        }
        self._timeouts_of_crews = {
            crew.name: seconds for crew in crews if (seconds := crew.options.run_timeout_seconds)
        }
        self._runs: dict[UUID, asyncio.Task[SettledRun | None]] = {}
        self._deadlines: dict[UUID, asyncio.Timeout] = {}
        self._aborted: set[UUID] = set()

    def __len__(self) -> int:
        """How many runs are under way or wait for a slot."""
        return len(self._runs)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id in self._runs

    @property
    def run_ids(self) -> set[UUID]:
        """The runs under way or waiting for a slot."""
        return set(self._runs)

    def dispatch(self, run_id: UUID, owner: str, crew: str) -> None:
        """Run an accepted run as soon as a slot is free, unless it is on its way already.

        Owners whose runs wait take turns.
        """
        if run_id not in self._runs:
            task = asyncio.create_task(self._carry(run_id, owner, crew))
            self._runs[run_id] = task
            task.add_done_callback(lambda _: self._forget(run_id))

    async def ended(self, run_id: UUID) -> SettledRun | None:
        """Wait for the end of a dispatched run; None if this worker doesn't carry it there."""
        task = self._runs.get(run_id)
        if task is None:
            return None
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise  # it is the caller who goes away
            return None

    def abort(self, run_id: UUID) -> None:
        """Stop a run that was cancelled: close its model connections, delete its outputs."""
        if deadline := self._deadlines.get(run_id):
            self._aborted.add(run_id)
            deadline.reschedule(asyncio.get_running_loop().time())

    async def give_up(self, run_id: UUID, attempt: int) -> None:
        """Settle a run whose workers were lost too often."""
        now = datetime.now(UTC)
        outcome = _failed("worker_lost", f"given up after {attempt} attempts that did not end")
        await self._settle(ClaimedRun(run_id, "", {}, attempt, now, now), outcome, [])

    async def drain(self, seconds: float) -> None:
        """Wait for the runs under way, then stop what is left.

        What is stopped keeps its row and its outputs, for whoever takes it over.
        """
        if self._runs:
            await asyncio.wait(self._runs.values(), timeout=seconds)
        left = list(self._runs.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if left:
            logger.warning("Stopped with %d run(s) unfinished; they stay accepted", len(left))

    def _forget(self, run_id: UUID) -> None:
        task = self._runs.pop(run_id)
        self._aborted.discard(run_id)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Run %s was not settled", run_id, exc_info=error)

    async def _carry(self, run_id: UUID, owner: str, crew: str) -> SettledRun | None:
        # The crew's own first: what waits for that keeps no slot from other crews.
        of_crew = self._slots_of_crews.get(crew)
        async with of_crew.slot(owner) if of_crew else nullcontext(), self._slots.slot(owner):
            return await self._carry_in_slot(run_id)

    async def _carry_in_slot(self, run_id: UUID) -> SettledRun | None:
        taken = await self._persist(lambda: self._rows.take(run_id))
        if taken is None:
            return None
        capture = Capture(self._store, self._rows, self._events, taken)
        outcome = await self._attempt(taken, capture)
        if isinstance(outcome, HumanInput):
            await self._pause(taken, outcome)
            return None
        settled = await self._settle(taken, outcome, capture.keys)
        if settled is None:
            return None
        waited = (taken.started_at - taken.created_at).total_seconds()
        return SettledRun(run_id, taken.inputs, settled, waited)

    async def _attempt(self, taken: ClaimedRun, capture: Capture) -> Outcome | HumanInput:
        """Run the crew; whatever goes wrong becomes the outcome.

        A HumanInput is what to keep while a human is waited for.

        What passes is the cancellation of a stopping process: the run stays accepted.
        """
        limit = self._timeouts_of_crews.get(taken.crew, self._timeout_seconds)
        try:
            async with asyncio.timeout(limit) as deadline:
                self._deadlines[taken.run_id] = deadline
                return await self._run(taken, capture)
        except TimeoutError:
            if taken.run_id in self._aborted:
                return CANCELLED
            return _failed("run_timeout", f"the run took longer than {limit:g} s")
        except EngineError as error:
            return _failed(_ERROR_TYPES.get(type(error), "crew_error"), str(error))
        except StorageError:
            logger.exception("Run %s: an output could not be stored", taken.run_id)
            return _failed("storage_unavailable", "an output could not be stored")
        except Exception:
            logger.exception("Run %s failed", taken.run_id)
            return _failed("internal_error", "internal error")
        finally:
            self._deadlines.pop(taken.run_id, None)

    async def _run(self, taken: ClaimedRun, capture: Capture) -> Outcome | HumanInput:
        checkpoint = await self._checkpoint(taken)
        result = await self._engine.run(
            taken.crew,
            taken.inputs,
            capture,
            checkpoint.replays,
            reviews=checkpoint.reviews,
            on_step=capture.on_step,
        )
        if isinstance(result, Paused):
            fingerprint = self._engine.describe(taken.crew).fingerprint
            return paused_at(result, taken.attempt, fingerprint, checkpoint.human_input)
        return _outcome(result, checkpoint.usage)

    async def _checkpoint(self, taken: ClaimedRun) -> Checkpoint:
        if taken.attempt == 1:
            return Checkpoint()
        crew = self._engine.describe(taken.crew)
        return await self._persist(
            lambda: find_checkpoint(
                taken.run_id, crew, self._queries, self._store, taken.human_input
            )
        )

    async def _pause(self, taken: ClaimedRun, human: HumanInput) -> None:
        """Commit that a human is waited for: from then on nothing here holds the run."""
        status = await self._persist(lambda: self._rows.pause(taken, human))
        if status is RunStatus.CANCELLED:
            await self.clean_up(taken.run_id)

    async def _settle(
        self, taken: ClaimedRun, outcome: Outcome, keys: Iterable[OutputKey]
    ) -> Outcome | None:
        """Commit the outcome, then delete what the run stored.

        Returns how the run is settled now, None if it is another worker's.
        """
        status = await self._commit(taken, outcome)
        if status is None:
            logger.warning("Run %s was taken over; its outcome here is dropped", taken.run_id)
            return None
        if status is RunStatus.CANCELLED:
            outcome = CANCELLED
        if outcome.error is not None:
            logger.info(
                "Run %s %s: %s: %s",
                taken.run_id,
                outcome.status,
                outcome.error_type,
                outcome.error,
            )
        await self.clean_up(taken.run_id, keys if taken.attempt == 1 else None)
        return outcome

    async def _commit(self, taken: ClaimedRun, outcome: Outcome) -> RunStatus | None:
        try:
            return await self._persist(lambda: self._rows.settle(taken, outcome))
        except Exception:  # about these very values: without them the run can still end
            logger.exception("Run %s: its outcome can't be saved as it is", taken.run_id)
            failed = _failed("internal_error", "the outcome could not be saved")
            return await self._persist(lambda: self._rows.settle(taken, failed))

    async def clean_up(self, run_id: UUID, keys: Iterable[OutputKey] | None = None) -> None:
        """Delete a settled run's outputs; `keys` are all of them, where that is known.

        Never fails: the next sweep takes what is left.
        """
        try:
            if keys is None:
                keys = [stored.key for stored in await self._store.find(run_id)]
            await self._store.delete(keys)
        except StorageError as error:
            logger.warning("Failed to cleanup %s: %s", run_id, error)
        if random.random() < self._sweeper.probability:  # noqa: S311 - not a secret
            self._sweeper.sweep_soon()

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Ask the database, however long it is away: an accepted run is never dropped."""
        with suppress(DatabaseUnavailable):
            return await write()  # a retrying object costs more than most writes
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            before_sleep=before_sleep_log(logger, logging.WARNING),
        ):
            with attempt:
                return await write()
        raise AssertionError("unreachable: retried without end")


def _outcome(result: CrewResult, used_before: Mapping[str, int]) -> Outcome:
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
            }
            for task in result.tasks
        ],
        usage={
            name: used + used_before.get(name, 0) for name, used in asdict(result.usage).items()
        },
    )


def _failed(error_type: str, error: str) -> Outcome:
    # PostgreSQL's text can't hold a NUL, and a model's message may.
    error = replace_surrogates(error).replace("\0", "")
    return Outcome(RunStatus.FAILED, error=error, error_type=error_type)
