"""What belongs to one run, and to no other: carried by a context variable into every thread and
asyncio task that the run starts.
"""

import asyncio
import contextvars
import shutil
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from crewai import Crew
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.task import Task
from crewai.tasks.task_output import TaskOutput
from crewai.types.usage_metrics import UsageMetrics

from app.engine.description import TaskDescription, task_descriptions
from app.engine.results import (
    OnStep,
    Paused,
    Replay,
    Review,
    RunObserver,
    StepFinished,
    TaskFinished,
    TaskOutcome,
    TaskStarted,
    Usage,
)
from app.engine.runtime.call_journal import Journal
from app.engine.runtime.signals import ReviewRequired, RunCancelled
from app.engine.runtime.threads import WorkThreads

_T = TypeVar("_T")

_current: contextvars.ContextVar["RunContext | None"] = contextvars.ContextVar(
    "crew_capture_run", default=None
)


class RunContext:
    """One run's identity: its tasks, observer, token usage, and errors of its models."""

    def __init__(
        self,
        *,
        tasks: tuple[TaskDescription, ...],
        observer: RunObserver | None,
        threads: WorkThreads,
        replays: Mapping[int, Replay] | None = None,
        on_step: OnStep | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`loop` is the engine's, by default the running one."""
        self.replays = replays or {}
        # What humans have said of the tasks' outputs, by their places.
        self.reviews: Mapping[int, Sequence[Review]] = {}
        # The tasks that a human is to review, and the one that waits for it, by their places.
        self.reviewed: frozenset[int] = frozenset()
        self._asked: int | None = None
        self._on_step = on_step
        self.threads = threads
        self.journal = Journal()
        self.usage = Usage()
        # What the models of this run have raised, to tell their failures from the crew's.
        self.model_errors: list[BaseException] = []
        self.observer_error: BaseException | None = None
        self.dropped = False
        # What `@persist` keeps by default, as JSON, by the id of a flow's state.
        self.flow_states: dict[str, bytes] = {}
        # Where the memory lies that CrewAI would keep for all runs; None until it is used.
        self.memory_folder: str | None = None
        self.memory_lock = threading.Lock()
        # Nobody listens to this run's CrewAI events: they need not be handed around.
        self.quiet = False
        # Of a native run: what has an agent run on the event loop; the asyncio task that executes
        # the crew, those of its asynchronous tasks, and the first failure among these.
        self.use_native_executor: Callable[[BaseAgent], None] | None = None
        self.main: asyncio.Task[Any] | None = None
        self.side_tasks: set[asyncio.Task[Any]] = set()
        self.task_error: BaseException | None = None
        self._usage_lock = threading.Lock()
        self._descriptions = tasks
        self._observer = observer
        self._loop = loop or asyncio.get_running_loop()
        self._indices: dict[int, int] = {}
        self._finished: dict[int, TaskFinished] = {}
        self._replayed: dict[int, TaskFinished] = {}
        self._started: dict[int, datetime] = {}
        self._tellings: dict[int, asyncio.Future[None]] = {}
        self._relayed: set[Future[Any]] = set()

    @contextmanager
    def activate(self) -> Iterator[None]:
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def forget_memory(self) -> None:
        """Remove what the run has remembered, where it was told no other place for it."""
        if self.memory_folder is not None:
            shutil.rmtree(self.memory_folder, ignore_errors=True)

    def drop(self) -> None:
        """The run was cancelled: stop it wherever it asks next, and forget what it says."""
        self.dropped = True
        for future in list(self._relayed):
            future.cancel()

    def check(self) -> None:
        if self.dropped:
            raise RunCancelled

    def bind(self, crew: Crew) -> None:
        """Tell which objects are this run's tasks. A factory may have built other ones by now."""
        self._indices = {id(task): index for index, task in enumerate(crew.tasks)}
        self._descriptions = task_descriptions(crew)

    def index_of(self, task: Task) -> int | None:
        return self._indices.get(id(task))

    def add_usage(self, metrics: UsageMetrics) -> None:
        with self._usage_lock:
            self.usage.add(metrics)

    def usage_metrics(self) -> UsageMetrics:
        """The usage in CrewAI's form."""
        return UsageMetrics(**asdict(self.usage))

    async def start_task(self, index: int, agent: str) -> None:
        """Note a task's start, and tell of it; a second time only waits for the first telling."""
        self.check()
        if index in self._started:
            return await self._wait_until_told(index)
        self._started[index] = datetime.now(UTC)
        if self._observer is not None:
            event = TaskStarted(index, self._descriptions[index].name, agent)
            await self._tell(index, self._observer.task_started(event))
        return None

    def replay(self, index: int, agent: str, *, structured: bool = False) -> Replay | None:
        """What an earlier attempt has for this task, noted as finished and told to nobody."""
        self.check()
        replay = self.replays.get(index)
        if replay is None or (structured and replay.structured is None):
            return None
        if index not in self._finished:
            self._started[index] = replay.started_at
            self._finished[index] = self._replayed[index] = TaskFinished(
                index,
                self._descriptions[index].name,
                agent,
                replay.text,
                replay.started_at,
                replay.finished_at,
                replay.structured,
                self.usage,
            )
        return replay

    async def finish_task(
        self, index: int, agent: str, text: str, structured: str | None = None
    ) -> None:
        """Note a task's end, and tell of it; a second time only waits for the first telling."""
        self.check()
        if index in self._finished:
            return await self._wait_until_told(index)
        name, started_at = self._descriptions[index].name, self._started[index]
        with self._usage_lock:
            usage = replace(self.usage)
        event = TaskFinished(
            index, name, agent, text, started_at, datetime.now(UTC), structured, usage
        )
        self._finished[index] = event
        if self._observer is not None:
            await self._tell(index, self._observer.task_finished(event))
        return None

    def require_review(self, index: int) -> None:
        """Have the run pause for a human if one is to review this finished task and has not yet.

        The crew's main line stops here. Tasks beside it are finished first.
        """
        if index in self.reviewed and not any(r.is_approved for r in self.reviews.get(index, ())):
            self._asked = index if self._asked is None else self._asked
        self.stop_for_review()

    def stop_for_review(self) -> None:
        """Nothing more is begun while a human is wanted."""
        if self._asked is not None and asyncio.current_task() is self.main:
            raise ReviewRequired

    @property
    def review_required(self) -> bool:
        return self._asked is not None

    def paused(self) -> Paused:
        if self._asked is None:
            raise RuntimeError("the run is not paused")
        return Paused(self._asked, dict(self._finished))

    def rejections(self, task: Task | None) -> list[Review]:
        """What a human found wrong with the task's earlier outputs."""
        index = self.index_of(task) if task is not None else None
        reviews = self.reviews.get(index, ()) if index is not None else ()
        return [review for review in reviews if not review.is_approved]

    def approvals(self) -> list[Review]:
        """What humans said of outputs that they let pass: for the tasks to come."""
        return [r for reviews in self.reviews.values() for r in reviews if r.is_approved]

    @property
    def tells_steps(self) -> bool:
        return self._on_step is not None

    async def finish_step(
        self,
        index: int | None,
        agent: str,
        *,
        thought: str,
        result: str,
        tool: str | None = None,
        tool_input: str | None = None,
    ) -> None:
        """Tell of a step, if somebody wants to hear and it is of one of the crew's own tasks."""
        if self._on_step is not None and index is not None:
            name = self._descriptions[index].name
            await self._on_step(StepFinished(index, name, agent, thought, tool, tool_input, result))

    async def _tell(self, index: int, telling: Coroutine[Any, Any, None]) -> None:
        told = self._tellings[index] = self._loop.create_future()
        try:
            await telling
        except Exception as error:
            self.observer_error = self.observer_error or error
            raise
        finally:
            if not told.done():
                told.set_result(None)

    async def _wait_until_told(self, index: int) -> None:
        """A run that was handed over may come by while its first telling is still under way."""
        if index in self._tellings:
            await asyncio.shield(self._tellings[index])
        if self.observer_error is not None:
            raise self.observer_error

    @contextmanager
    def as_side_task(self) -> Iterator[None]:
        """One task of the crew. If it fails beside the main one, the whole run ends now."""
        task = asyncio.current_task()
        if task is None or task is self.main:
            yield
            return
        self.side_tasks.add(task)
        try:
            yield
        except Exception as error:
            if self.task_error is None and self.main is not None:
                self.task_error = error
                self.main.cancel()
            raise

    async def answer(
        self, task: Task | None, messages: list[Any], call: Callable[[], Awaitable[Any]]
    ) -> Any:
        """The answer to an agent's model call: the journal's, if the call was made already."""
        self.check()
        index = self.index_of(task) if task is not None else None
        called = self.journal.take(index, messages) if index is not None else None
        if called is None:
            return await call()
        answer = await called.answer
        messages[:] = called.after
        return answer

    def on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """From a thread of this run: have the event loop do `work`, and wait for it."""
        if self.dropped:
            work.close()
            raise RunCancelled
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self.relayed(future):
            try:
                return future.result()
            except (asyncio.CancelledError, Exception) as error:
                if self.dropped:
                    raise RunCancelled from error
                raise

    @contextmanager
    def relayed(self, future: Future[Any]) -> Iterator[None]:
        """Within this, dropping the run cancels what a thread of it waits for."""
        self._relayed.add(future)
        if self.dropped:
            future.cancel()
        try:
            yield
        finally:
            self._relayed.discard(future)

    def outcomes(self, outputs: list[TaskOutput]) -> tuple[TaskOutcome, ...]:
        """Every task's outcome; those that never started were skipped."""
        found = []
        for index, output in enumerate(outputs):
            finished = self._finished.get(index)
            found.append(
                TaskOutcome(
                    name=self._descriptions[index].name,
                    agent=output.agent,
                    text=output.raw,
                    skipped=finished is None,
                    replayed=finished is not None and finished is self._replayed.get(index),
                    started_at=finished.started_at if finished else None,
                    finished_at=finished.finished_at if finished else None,
                )
            )
        return tuple(found)


def current_context() -> RunContext | None:
    """The run that this thread or asyncio task works for."""
    return _current.get()
