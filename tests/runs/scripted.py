"""A run service over a real database and a real store, with an engine that plays a script."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import select

from app.access.callers import Caller
from app.crews.registry import CrewSpec, Registry
from app.db import Database
from app.engine import (
    CallObserver,
    CrewDescription,
    CrewResult,
    CrewUnknown,
    Engine,
    ModelCall,
    Replay,
    RunObserver,
    TaskDescription,
    TaskFinished,
    TaskOutcome,
    TaskStarted,
    ToolCall,
    Usage,
)
from app.runs.crew_info import crew_info
from app.runs.events.hub import EventHub
from app.runs.events.token_relay import TokenRelay
from app.runs.execution.consumer import QueueConsumer
from app.runs.execution.dispatch import LocalDispatcher, QueueDispatcher
from app.runs.execution.isolation import Isolation
from app.runs.execution.lease_keeper import (
    LeaseKeeper,
    StalledRunDispatcher,
    suspect_after,
)
from app.runs.execution.live_updates import LiveUpdates
from app.runs.execution.peer_poller import PeerPoller
from app.runs.execution.spending import Accounts
from app.runs.execution.worker import Worker
from app.runs.maintenance.sweeper import Sweeper
from app.runs.models import UserRun
from app.runs.persistence.published_runs import PublishedRuns
from app.runs.persistence.queries import RunQueries
from app.runs.persistence.repository import RunRepository
from app.runs.persistence.workers import WorkerRepository
from app.runs.queue.base import RunQueue
from app.runs.records import QUEUE, DispatchedRun, Run, RunOptions, StalledRun
from app.runs.service import RunService
from app.runs.webhooks.url_guard import UrlGuard
from storage import OutputStore

TASKS = ("first", "second", "third")
FINGERPRINT = "of the poem crew"
MODELS = ("scripted/model",)
USED = Usage(total_tokens=1)
"""The usage of each task."""
Script = Callable[[Mapping[str, object], "Stage"], Awaitable[None]]


class Stage:
    """What a script does: finish tasks, in its own time, with its own texts."""

    def __init__(
        self,
        observer: RunObserver,
        replays: Mapping[int, Replay],
        usage: Usage,
        calls: CallObserver | None,
    ) -> None:
        self._observer = observer
        self._calls = calls
        self.replays = replays
        self._usage = usage
        self.outcomes: list[TaskOutcome] = []

    @property
    def usage(self) -> Usage:
        return self._usage

    @usage.setter
    def usage(self, used: Usage) -> None:
        """What a script's models report; the worker counts it at once."""
        for name, count in asdict(used).items():
            setattr(self._usage, name, count)

    @contextmanager
    def call_model(
        self, index: int | None, messages: Any = (), answer: Any = "", **fields: Any
    ) -> Iterator[ModelCall]:
        """A call to a model, which ends with the block."""
        task = None if index is None else TaskStarted(index, TASKS[index], "agent")
        call = ModelCall(
            task=task,
            within=fields.pop("within", None),
            model=MODELS[0],
            provider="scripted",
            messages=messages,
            tools=None,
        )
        with self._observed(call):
            yield call
            call.answer = answer
            for name, value in fields.items():
                setattr(call, name, value)

    def stream(self, index: int, tokens: str) -> bool:
        """A model's tokens in a task; whether there is a subscriber to them."""
        task = TaskStarted(index, TASKS[index], "agent")
        listener = self._observer.token_listener(task)
        if listener is not None:
            listener(tokens)
        return listener is not None

    @contextmanager
    def call_tool(self, index: int, given: Any = None, result: Any = None) -> Iterator[ToolCall]:
        """A call to a tool, which ends with the block."""
        task = TaskStarted(index, TASKS[index], "agent")
        call = ToolCall(task=task, within=None, tool="look", executed=None, input=given)
        with self._observed(call):
            yield call
            call.result = result

    @contextmanager
    def _observed(self, call: ModelCall | ToolCall) -> Iterator[None]:
        assert self._calls is not None
        self._calls.call_started(call)
        try:
            yield
        except BaseException as error:
            call.error = error
            raise
        finally:
            call.finished_at = time.time_ns()
            self._calls.call_finished(call)

    async def start(self, index: int) -> None:
        await self._observer.task_started(TaskStarted(index, TASKS[index], "agent"))

    async def finish(self, index: int, text: str) -> None:
        name, begun = TASKS[index], datetime.now(UTC)
        if (replay := self.replays.get(index)) is not None:
            times = (replay.started_at, replay.finished_at)
            self.outcomes.append(
                TaskOutcome(name, "agent", replay.text, False, True, *times, replay.models)
            )
            return
        await self._observer.task_started(TaskStarted(index, name, "agent"))
        ended = datetime.now(UTC)
        await self._observer.task_finished(
            TaskFinished(index, name, "agent", text, begun, ended, None, USED, self.usage, MODELS)
        )
        self.outcomes.append(TaskOutcome(name, "agent", text, False, False, begun, ended, MODELS))

    async def finish_all(self, text: str) -> None:
        for index, name in enumerate(TASKS):
            await self.finish(index, f"{name}: {text}")


async def succeed(inputs: Mapping[str, object], stage: Stage) -> None:
    await stage.finish_all(str(inputs.get("topic")))


class ScriptedEngine:
    """Runs every registered crew by the script."""

    def __init__(self, script: Script, crews: Registry) -> None:
        self.script = script
        self.fingerprints = {crew.name: FINGERPRINT for crew in crews}

    def fingerprint(self, name: str) -> str | None:
        return self.fingerprints.get(name)

    def describe(self, name: str) -> CrewDescription:
        if name not in self.fingerprints:
            raise CrewUnknown(f"no crew is named {name}")
        tasks = tuple(TaskDescription(task, "agent") for task in TASKS)
        return CrewDescription(
            name=name,
            inputs=("topic",),
            tasks=tasks,
            execution_mode="plan",
            reason="",
            fingerprint=self.fingerprints[name],
        )

    def check_inputs(self, name: str, inputs: Mapping[str, object]) -> None:
        """Takes all."""

    def check_threads(self, name: str) -> None:
        """Accepts all."""

    async def run(
        self,
        name: str,
        inputs: Mapping[str, object],
        observer: RunObserver,
        replays: Mapping[int, Replay],
        *,
        usage: Usage,
        **options: Any,
    ) -> CrewResult:
        stage = Stage(observer, replays, usage, options.get("calls"))
        await self.script(inputs, stage)
        outcomes = tuple(stage.outcomes)
        raw = outcomes[-1].text if outcomes else ""
        return CrewResult(raw, outcomes, stage.usage, cast(Any, None), "plan")


def no_crew() -> Any:
    raise AssertionError("a scripted engine builds no crew")


CREWS = Registry([CrewSpec("poem", no_crew)])


@dataclass
class Parts:
    """A service and what it stands on."""

    runs: RunService
    rows: RunRepository
    queries: RunQueries
    worker: Worker
    events: EventHub
    store: OutputStore
    database: Database
    engine: ScriptedEngine
    sweeper: Sweeper
    lease_keeper: LeaseKeeper
    stalled_runs: StalledRunDispatcher
    peer_poller: PeerPoller
    dispatcher: LocalDispatcher | QueueDispatcher

    async def submit(
        self,
        crew: str,
        inputs: Mapping[str, Any],
        caller: Caller,
        options: RunOptions | None = None,
    ) -> UUID:
        return (await self.runs.submit(crew, inputs, caller, options)).run_id

    async def wait(self, run_id: UUID, caller: Caller) -> Run:
        return await self.runs.wait(await self.runs.get(run_id, caller), caller)

    async def run(self, crew: str, inputs: Mapping[str, Any], caller: Caller) -> Run:
        """Submit a run and wait for its end."""
        return await self.runs.wait(await self.runs.submit(crew, inputs, caller), caller)

    async def statuses(self) -> list[str]:
        async with self.database.read() as connection:
            return list(await connection.scalars(select(UserRun.status)))

    async def stored(self) -> int:
        return (await self.store.usage()).count

    async def stop(self, seconds: float) -> None:
        """What a stopping process does."""
        self.runs.accepting = False
        await self.worker.drain(seconds)
        await self.lease_keeper.aclose()

    async def recover(self) -> None:
        """One pass of what a process does at intervals: renew leases, dispatch stalled runs."""
        await self.lease_keeper.run_once()
        await self.stalled_runs.run_once()


@asynccontextmanager
async def running_service(
    database: Database,
    store: OutputStore,
    script: Script = succeed,
    *,
    max_in_flight: int = 100,
    max_queued: int = 100,
    timeout_seconds: float = 30.0,
    cleanup_probability: float = 0.0,
    url_guard: UrlGuard | None = None,
    crews: Registry = CREWS,
    max_attempts: int = 3,
    keep_messages: bool = False,
    queue: RunQueue | None = None,
) -> AsyncIterator[Parts]:
    """The service, started without its background loops; drained at the end.

    With a queue, which is connected, it shares the runs of the database with other services.
    """
    events, name = EventHub(), uuid4().hex
    engine = ScriptedEngine(script, crews)
    rows = RunRepository(
        database,
        events,
        engine.fingerprint,
        worker=name,
        lease_seconds=60,
        holder=QUEUE if queue else None,
    )
    queries = RunQueries(database)
    tokens = TokenRelay(database, name)
    sweeper = Sweeper(
        store,
        queries,
        tokens,
        max_age_seconds=0.0,
        interval_seconds=3600,
        probability=cleanup_probability,
    )
    accounts = Accounts(database, name)
    worker = Worker(
        rows=rows,
        queries=queries,
        store=store,
        engine=cast(Engine, engine),
        sweeper=sweeper,
        events=events,
        crews=crews,
        accounts=accounts,
        max_in_flight=max_in_flight,
        timeout_seconds=timeout_seconds,
        keep_messages=keep_messages,
    )
    dispatcher: LocalDispatcher | QueueDispatcher = LocalDispatcher(worker)
    if queue is not None:
        published = PublishedRuns(
            database, lease_seconds=60, max_failed_attempts=suspect_after(max_attempts)
        )
        dispatcher = QueueDispatcher(queue, published, QueueConsumer(queue, worker))
    runs = RunService(
        crews={crew.name: crew_info(crew, engine.describe(crew.name)) for crew in crews},
        check_state=engine.check_inputs,
        rows=rows,
        queries=queries,
        workers=WorkerRepository(database),
        worker=worker,
        dispatcher=dispatcher,
        events=events,
        accounts=accounts,
        max_runs=max_in_flight + max_queued,
        url_guard=url_guard,
    )
    lease_keeper = LeaseKeeper(database, rows, worker, lease_seconds=60)
    stalled_runs = StalledRunDispatcher(
        queries,
        worker,
        cast(Isolation, _NoIsolation(worker)),
        max_attempts=max_attempts,
        is_shared=queue is not None,
    )
    peer_poller = PeerPoller(name, database.clock, worker, events, queries, tokens)
    if queue is not None:
        await LiveUpdates(queue, rows, worker, events, peer_poller).start()
    try:
        yield Parts(
            runs,
            rows,
            queries,
            worker,
            events,
            store,
            database,
            engine,
            sweeper,
            lease_keeper,
            stalled_runs,
            peer_poller,
            dispatcher,
        )
    finally:
        if isinstance(dispatcher, QueueDispatcher):
            await dispatcher.aclose()
        await peer_poller.aclose()
        await worker.drain(5)
        await sweeper.aclose()
        await rows.aclose()


class _NoIsolation:
    """Executes suspects like all other runs: a scripted crew ends no process."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __contains__(self, run_id: UUID) -> bool:
        return False

    def execute_in_groups(self, suspects: Sequence[StalledRun]) -> None:
        for run in suspects:
            self.execute_alone(run)

    def execute_alone(self, suspect: StalledRun) -> None:
        self._worker.dispatch(DispatchedRun.of(suspect))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Wait for something to become true; fail if it doesn't."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.005)
