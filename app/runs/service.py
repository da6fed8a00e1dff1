"""The life of a run: accepted, taken, run, captured, settled, cleaned up."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid4

from tenacity import (
    AsyncRetrying,
    before_sleep_log,
    retry_if_exception_type,
    wait_random_exponential,
)

from app.crews.registry import Registry
from app.db import DatabaseUnavailable
from app.engine import CrewFailed, CrewResult, Engine, EngineError, ModelError, NoResult
from app.runs.capture import Capture, Watcher
from app.runs.errors import Overloaded, RunMoved, ShuttingDown, UnknownCrew
from app.runs.inputs import complete_inputs
from app.runs.models import RunStatus
from app.runs.rows import NewRun, Outcome, RunRows, TakenRun
from app.runs.sweeping import Sweeper
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
class RunLimits:
    """How much one process does at once, and for how long."""

    max_in_flight: int
    max_queued: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class SettledRun:
    """A run that ended, as its row says."""

    run_id: UUID
    inputs: dict[str, Any]
    outcome: Outcome
    waited_seconds: float


class RunService:
    """Accepts runs and carries each to its end, whoever waits for it or not.

    A run is accepted when its row is committed. From then on it ends in one of the settled
    states, and only after that is committed are its stored outputs deleted. While the
    database is away, runs wait for it; nothing of theirs is deleted.
    """

    def __init__(
        self,
        *,
        crews: Registry,
        rows: RunRows,
        store: OutputStore,
        engine: Engine,
        sweeper: Sweeper,
        limits: RunLimits,
    ) -> None:
        self._crews = crews
        self._rows = rows
        self._store = store
        self._engine = engine
        self._sweeper = sweeper
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.max_in_flight)
        self._runs: dict[UUID, asyncio.Task[SettledRun | None]] = {}
        self._watchers: dict[UUID, Watcher] = {}
        self._accepting = True
        self._adding = 0

    @property
    def accepting(self) -> bool:
        """Whether new runs are taken."""
        return self._accepting

    async def start(
        self, crew: str, given: Mapping[str, Any], *, watcher: Watcher | None = None
    ) -> UUID:
        """Accept a run: when this returns, its row is committed and it will be run.

        Raises:
            UnknownCrew: no crew of this name is served.
            InvalidInput: an input can't be taken.
            Overloaded, ShuttingDown, DatabaseUnavailable: not now; nothing was accepted.
        """
        spec = self._crews.get(crew)
        if spec is None:
            raise UnknownCrew(crew)
        inputs = complete_inputs(spec, self._engine.describe(crew).inputs, given)
        self._admit()
        run = NewRun(uuid4(), crew, inputs, datetime.now(UTC))
        self._adding += 1
        try:
            await self._rows.add(run)
        finally:
            self._adding -= 1
        if watcher is not None:
            self._watchers[run.run_id] = watcher
        self.dispatch(run.run_id)
        return run.run_id

    async def run(
        self, crew: str, given: Mapping[str, Any], *, watcher: Watcher | None = None
    ) -> SettledRun:
        """Accept a run and wait for its end.

        Whoever waits may go away: the run goes on, is saved and cleaned up.

        Raises:
            RunMoved: this process stops or lost the run; another carries it to its end.
            Exception: what `start` raises.
        """
        run_id = await self.start(crew, given, watcher=watcher)
        task = self._runs[run_id]
        try:
            settled = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise  # it is the caller who goes away
            settled = None
        if settled is None:
            raise RunMoved(f"run {run_id} is accepted and goes on in another process")
        return settled

    def dispatch(self, run_id: UUID) -> None:
        """Run an accepted run as soon as a slot is free, unless it is on its way already."""
        if run_id not in self._runs:
            task = asyncio.create_task(self._carry(run_id))
            self._runs[run_id] = task
            task.add_done_callback(lambda _: self._forget(run_id))

    async def give_up(self, run_id: UUID, attempt: int) -> None:
        """Settle a run whose workers were lost too often."""
        now = datetime.now(UTC)
        outcome = _failed("worker_lost", f"given up after {attempt} attempts that did not end")
        await self._settle_and_clean(TakenRun(run_id, "", {}, attempt, now, now), outcome, [])

    async def drain(self, seconds: float) -> None:
        """Take no more runs, wait for those under way, then stop what is left.

        What is stopped keeps its row and its outputs, for whoever takes it over.
        """
        self._accepting = False
        if self._runs:
            await asyncio.wait(self._runs.values(), timeout=seconds)
        left = list(self._runs.values())
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        if left:
            logger.warning("Stopped with %d run(s) unfinished; they stay accepted", len(left))

    def _admit(self) -> None:
        if not self._accepting:
            raise ShuttingDown("the service is shutting down")
        limits = self._limits
        if len(self._runs) + self._adding >= limits.max_in_flight + limits.max_queued:
            raise Overloaded(
                f"{limits.max_in_flight} runs are under way and {limits.max_queued} wait"
            )

    def _forget(self, run_id: UUID) -> None:
        task = self._runs.pop(run_id)
        self._watchers.pop(run_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("Run %s was not settled", run_id, exc_info=error)

    async def _carry(self, run_id: UUID) -> SettledRun | None:
        async with self._slots:
            taken = await self._persist(lambda: self._rows.take(run_id))
            if taken is None:
                return None
            capture = Capture(self._store, taken, self._watchers.get(run_id))
            outcome = await self._attempt(taken, capture)
            if not await self._settle_and_clean(taken, outcome, capture.keys):
                return None
        waited = (taken.started_at - taken.created_at).total_seconds()
        return SettledRun(run_id, taken.inputs, outcome, waited)

    async def _attempt(self, taken: TakenRun, capture: Capture) -> Outcome:
        """Run the crew; whatever goes wrong becomes the outcome. Only a cancellation passes."""
        try:
            async with asyncio.timeout(self._limits.timeout_seconds):
                return _outcome(await self._engine.run(taken.crew, taken.inputs, capture))
        except TimeoutError:
            limit = self._limits.timeout_seconds
            return _failed("run_timeout", f"the run took longer than {limit:g} s")
        except EngineError as error:
            return _failed(_ERROR_TYPES.get(type(error), "crew_error"), str(error))
        except StorageError:
            logger.exception("Run %s: an output could not be stored", taken.run_id)
            return _failed("storage_unavailable", "an output could not be stored")
        except Exception:
            logger.exception("Run %s failed", taken.run_id)
            return _failed("internal_error", "internal error")

    async def _settle_and_clean(
        self, taken: TakenRun, outcome: Outcome, keys: Iterable[OutputKey]
    ) -> bool:
        """Commit the outcome, then delete what the run stored; False if the run is another's."""
        if not await self._settle(taken, outcome):
            logger.warning("Run %s was taken over; its outcome here is dropped", taken.run_id)
            return False
        if outcome.error is not None:
            logger.info("Run %s failed: %s: %s", taken.run_id, outcome.error_type, outcome.error)
        await self._clean_up(taken, keys)
        return True

    async def _settle(self, taken: TakenRun, outcome: Outcome) -> bool:
        try:
            return await self._persist(lambda: self._rows.settle(taken, outcome))
        except Exception:  # about these very values: without them the run can still end
            logger.exception("Run %s: its outcome can't be saved as it is", taken.run_id)
            failed = _failed("internal_error", "the outcome could not be saved")
            return await self._persist(lambda: self._rows.settle(taken, failed))

    async def _clean_up(self, taken: TakenRun, keys: Iterable[OutputKey]) -> None:
        """Delete the outputs of all attempts. Never fails: the next sweep takes what is left."""
        try:
            if taken.attempt > 1:
                keys = [stored.key for stored in await self._store.find(taken.run_id)]
            await self._store.delete(keys)
        except StorageError as error:
            logger.warning("Failed to cleanup %s: %s", taken.run_id, error)
        if random.random() < self._sweeper.probability:  # noqa: S311 - not a secret
            self._sweeper.sweep_soon()

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write, however long the database is away: an accepted run is never dropped."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(DatabaseUnavailable),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            before_sleep=before_sleep_log(logger, logging.WARNING),
        ):
            with attempt:
                return await write()
        raise AssertionError("unreachable: retried without end")


def _outcome(result: CrewResult) -> Outcome:
    blank = [t.name for t in result.tasks if not t.skipped and not t.text.strip()]
    if blank or not result.tasks:
        return _failed("no_results", f"nothing meaningful came back for {', '.join(blank)}")
    return Outcome(
        RunStatus.SUCCEEDED,
        outputs={task.name: _storable(task.text) for task in result.tasks},
        raw_result=_storable(result.raw),
        tasks=[
            {
                "name": task.name,
                "agent": task.agent,
                "skipped": task.skipped,
                "started_at": task.started_at,
                "finished_at": task.finished_at,
            }
            for task in result.tasks
        ],
        usage=asdict(result.usage),
    )


def _failed(error_type: str, error: str) -> Outcome:
    # PostgreSQL's text can't hold a NUL, and a model's message may.
    error = _storable(error).replace("\0", "")
    return Outcome(RunStatus.FAILED, error=error, error_type=error_type)


def _storable(text: str) -> str:
    """The text without halves of surrogate pairs, which no database can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
