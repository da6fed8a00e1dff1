"""The state of one run. A context variable propagates it to the run's threads and asyncio tasks."""

import asyncio
import contextvars
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from crewai import Crew
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.task import Task
from crewai.tasks.task_output import TaskOutput
from crewai.types.usage_metrics import UsageMetrics

from app.engine.calls import CallObserver, GuardrailRound, ModelCall, OnGuardrail, ToolCall
from app.engine.compat.memoized import forget_results
from app.engine.compat.silence import silent
from app.engine.description import PLACEHOLDER, TaskDescription, task_descriptions
from app.engine.llm import listener_of_call
from app.engine.llm.answer_limit import MAX_OUTPUT_CHARS
from app.engine.memory_store import MemoryStore
from app.engine.results import (
    OnStep,
    OnToken,
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
from app.engine.runtime.call_journal import CallJournal
from app.engine.runtime.signals import OutputTooLong, ReviewRequired, RunCancelled, RunStopped
from app.engine.runtime.threads import WorkThreads
from app.projects import outside
from app.projects.run_files import RunFiles

if TYPE_CHECKING:
    from app.engine.runtime.mcp_connections import McpScope

_T = TypeVar("_T")
_Call = TypeVar("_Call", ModelCall, ToolCall)

_current: contextvars.ContextVar["RunContext | None"] = contextvars.ContextVar(
    "crew_capture_run", default=None
)


# The task that the model calls of this thread or asyncio task belong to.
_calling: contextvars.ContextVar["_TaskState | None"] = contextvars.ContextVar(
    "crew_capture_task", default=None
)


@dataclass(slots=True)
class _TaskState:
    """The progress of one task. `notified` is set once the observer has received its last event.

    `task` is its start as the run reports it. `models` are the models that it has called, and
    `usage` is what their answers to it have used.
    """

    task: TaskStarted
    started_at: datetime
    models: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    finished: TaskFinished | None = None
    replayed: bool = False
    notified: asyncio.Future[None] | None = None


class RunContext:
    """One run: its tasks, observer, token usage, and the errors of its models."""

    def __init__(
        self,
        *,
        tasks: tuple[TaskDescription, ...],
        observer: RunObserver | None,
        threads: WorkThreads,
        replays: Mapping[int, Replay] | None = None,
        on_step: OnStep | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        max_output_chars: int = MAX_OUTPUT_CHARS,
        calls: CallObserver | None = None,
        on_guardrail: OnGuardrail | None = None,
    ) -> None:
        """`loop` is the engine's event loop, by default the running one."""
        self.calls = calls
        self.on_guardrail = on_guardrail
        # The error of `calls` that ends the run: no further call begins.
        self.stop_error: BaseException | None = None
        self.max_output_chars = max_output_chars
        self.replays = replays or {}
        # The humans' reviews of the tasks' outputs, by task index.
        self.reviews: Mapping[int, Sequence[Review]] = {}
        # The indices of the tasks that need a review, and of the task that waits for one.
        self.tasks_to_review: frozenset[int] = frozenset()
        self._awaiting_review: int | None = None
        self._on_step = on_step
        self.threads = threads
        self.journal = CallJournal()
        self.usage = Usage()
        # The models that the run has called, in the order of their first calls.
        self.models: list[str] = []
        # The errors of this run's models, to distinguish their failures from the crew's.
        self.model_errors: list[BaseException] = []
        self.observer_error: BaseException | None = None
        self.cancelled = False
        # The states that `@persist` stores by default, as JSON, by the id of a flow's state.
        self.flow_states: dict[str, bytes] = {}
        # The run's memories; None until they are used. Without a store, they end with the run.
        self.memory_store: MemoryStore | None = None
        self.memory: Any = None
        # The run whose memory this one uses: of a crew inside a flow, the flow.
        self.remembering: RunContext | None = None
        # The connections to MCP servers that it may share; None: each call has one of its own.
        self.mcp_scope: McpScope | None = None
        # Saves of memories, and other code that CrewAI executes in threads of its own.
        self.background: set[asyncio.Task[Any]] = set()
        # The saves among it that have not ended.
        self.saves: set[Future[Any]] = set()
        # A lock for each of CrewAI's memories: it saves in order.
        self.save_locks: dict[int, asyncio.Lock] = {}
        # The files that its tasks name by `output_file`, for its own code.
        self.files = RunFiles()
        self._has_code = False
        # Without listeners, CrewAI's events of this run need not be dispatched.
        self.suppress_events = False
        # Of a native run: the function that makes an agent run on the event loop; the asyncio task
        # that executes the crew, those of its asynchronous tasks, and the first failure of these.
        self.use_native_executor: Callable[[BaseAgent], None] | None = None
        # Whether the crew's planner is still to be called; the agents of tasks whose own agent
        # executes another task at the same time, by the `id` of the task.
        self.planner_required = False
        self.stand_ins: dict[int, BaseAgent] = {}
        self.main: asyncio.Task[Any] | None = None
        self.side_tasks: set[asyncio.Task[Any]] = set()
        self.task_error: BaseException | None = None
        # The instances of `@CrewBase` classes that have built the crew.
        self.instances: list[Any] = []
        self._usage_lock = threading.Lock()
        self._descriptions = tasks
        self._observer = observer
        self._loop = loop or asyncio.get_running_loop()
        self._indices: dict[int, int] = {}
        self._tasks: dict[int, _TaskState] = {}
        self._waited_for: set[Future[Any]] = set()
        self._admissions: set[asyncio.Future[None]] = set()

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Within this, `current_run` returns this run."""
        token = _current.set(self)
        try:
            with silent():
                yield
        finally:
            _current.reset(token)

    def is_on_loop(self) -> bool:
        """Whether the calling code runs on the engine's event loop."""
        return _running_loop() is self._loop

    def call_on_loop(self, function: Callable[[], object]) -> None:
        """Call `function` on the engine's event loop: now, or soon if this is another thread."""
        if self.is_on_loop():
            function()
        else:
            self._loop.call_soon_threadsafe(function)

    async def end_background(self, *, cancel: bool) -> None:
        """Wait for the run's work in the background, or cancel it."""
        while self.background:
            if cancel:
                self.cancel_background()
            await asyncio.wait(self.background)

    def cancel_background(self) -> None:
        for task in self.background:
            task.cancel()

    def release(self) -> None:
        """Forget what refers to this run, once it has ended: it is freed without the collector."""
        self.main = None
        self.side_tasks.clear()
        for instance in self.instances:
            forget_results(instance)

    def cancel(self) -> None:
        """Stop the run at its next model call or task, and ignore what its threads still report."""
        self.cancelled = True
        for future in list(self._waited_for):
            future.cancel()

    def check_cancelled(self) -> None:
        """Raise RunCancelled if the run was cancelled, RunStopped if no call may begin any more."""
        if self.cancelled:
            raise RunCancelled
        if self.stop_error is not None:
            raise RunStopped(self.stop_error)

    def check_length(self, name: str, text: str) -> None:
        """Raise OutputTooLong if an output is longer than MAX_OUTPUT_CHARS."""
        if len(text) > self.max_output_chars:
            raise OutputTooLong(name, len(text), self.max_output_chars)

    @property
    def reads_files(self) -> bool:
        """Whether code of the run may read the files of its tasks.

        That is a tool or a callback, or the code of a flow.
        """
        return self._has_code

    def bind(self, crew: Crew) -> None:
        """Use the tasks of `crew`, which may differ from those at start, as this run's tasks."""
        self._has_code = crew.task_callback is not None or any(
            task.tools or task.callback or (task.agent and task.agent.tools) for task in crew.tasks
        )
        self._indices = {id(task): index for index, task in enumerate(crew.tasks)}
        self._descriptions = task_descriptions(crew)

    def index_of(self, task: Task) -> int | None:
        return self._indices.get(id(task))

    def add_usage(self, metrics: UsageMetrics) -> None:
        """Count the usage of a model call, for the run and for the task that makes the call."""
        task = _calling.get()
        with self._usage_lock:
            self.usage.add(metrics)
            if task is not None:
                task.usage.add(metrics)

    def executes(self, crew: Crew) -> bool:
        """Whether this is a native run of `crew`, and not of one that a tool of it kicks off."""
        own = all(id(task) in self._indices for task in crew.tasks)
        return own and self.use_native_executor is not None

    def may_block(self) -> bool:
        """Whether this is a thread of a native run, which may wait for the engine's event loop."""
        return self.use_native_executor is not None and _running_loop() is not self._loop

    def usage_metrics(self) -> UsageMetrics:
        """The usage in CrewAI's form."""
        return UsageMetrics(**asdict(self.usage))

    def token_listener(self, index: int, agent: str) -> OnToken | None:
        """The observer's listener for a model call of the task that begins now."""
        if self._observer is None:
            return None
        task = TaskStarted(index, self._descriptions[index].name, agent)
        return self._observer.token_listener(task)

    def add_model(self, name: str) -> None:
        """Record that a model is called now, for the task that calls it."""
        if name not in self.models:
            self.models.append(name)
        task = _calling.get()
        if task is not None and name not in task.models:
            task.models += (name,)

    @property
    def calling_task(self) -> TaskStarted | None:
        """The task that makes the calls of this thread or asyncio task."""
        state = _calling.get()
        return state.task if state is not None else None

    async def admit(self, call: ModelCall) -> None:
        """Wait until the observer admits a model call. Raises RunStopped if it refuses."""
        if (waiting := self._begin_admission(call)) is None:
            return
        try:
            await self.await_on_loop(waiting)
        except Exception as error:
            raise self._stopped(error) from error

    def admit_from_thread(self, call: ModelCall) -> None:
        """The same, and block this thread until the call is admitted."""
        if (waiting := self._begin_admission(call)) is None:
            return
        if self.is_on_loop():
            # A call that blocks the engine's event loop can't wait for anything on it.
            self._admissions.add(asyncio.ensure_future(waiting))
            return
        try:
            self.on_loop(waiting)
        except RunCancelled:
            raise
        except Exception as error:
            raise self._stopped(error) from error

    def _begin_admission(self, call: ModelCall) -> Coroutine[Any, Any, None] | None:
        if self.calls is None:
            return None
        try:
            waiting = self.calls.admit(call)
        except Exception as error:
            raise self._stopped(error) from error
        return None if waiting is None else _wait_for(waiting)

    def _stopped(self, error: Exception) -> Exception:
        self.stop_error = self.stop_error or error
        return RunStopped(error)

    @contextmanager
    def observed(self, call: _Call, active: contextvars.ContextVar[_Call | None]) -> Iterator[None]:
        """Within this, `call` is the active one; the observer receives its start and its end."""
        calls = self.calls
        token = active.set(call)
        if calls is not None:
            calls.call_started(call)
        try:
            yield
        except BaseException as error:
            call.error = error
            raise
        finally:
            active.reset(token)
            call.finished_at = time.time_ns()
            if calls is not None:
                calls.call_finished(call)

    @contextmanager
    def calling(self, index: int) -> Iterator[None]:
        """Within the block, model calls belong to the task, which has started."""
        token = _calling.set(self._tasks[index])
        try:
            yield
        finally:
            _calling.reset(token)

    @contextmanager
    def listening(self, index: int, agent: str) -> Iterator[None]:
        """Within the block, model calls belong to the task, whose listener receives tokens."""

        def listener_on_loop() -> OnToken | None:
            listener = self.token_listener(index, agent)
            if listener is None or self.is_on_loop():
                return listener

            def forward(piece: str) -> None:
                self._loop.call_soon_threadsafe(listener, piece)

            return forward

        token = listener_of_call.set(listener_on_loop)
        try:
            with self.calling(index):
                yield
        finally:
            listener_of_call.reset(token)

    async def start_task(self, index: int, agent: str) -> None:
        """Record a task's start and notify the observer.

        A further call only waits until the observer is notified.
        """
        self.check_cancelled()
        if index in self._tasks:
            return await self._wait_until_notified(index)
        event = self._task_started(index, agent)
        self._tasks[index] = _TaskState(self._as_reported(event), datetime.now(UTC))
        if self._observer is not None:
            await self._notify(index, self._observer.task_started(event))
        return None

    def replay(self, index: int, agent: str, *, structured: bool = False) -> Replay | None:
        """The task's replay, if there is one. Records the task as finished without an event."""
        self.check_cancelled()
        replay = self.replays.get(index)
        if replay is None or (structured and replay.structured is None):
            return None
        if self._finished(index) is None:
            finished = TaskFinished(
                index,
                self._descriptions[index].name,
                agent,
                replay.text,
                replay.started_at,
                replay.finished_at,
                replay.structured,
                Usage(),
                self.usage,
                replay.models,
            )
            self._tasks[index] = _TaskState(
                TaskStarted(index, finished.name, agent),
                replay.started_at,
                replay.models,
                finished=finished,
                replayed=True,
            )
        return replay

    async def finish_task(
        self,
        index: int,
        agent: str,
        text: str,
        structured: str | None = None,
        models: tuple[str, ...] = (),
        usage: Usage | None = None,
    ) -> None:
        """Record a task's end and notify the observer.

        `models` are those that the task has called in a context of its own, and `usage` is what it
        has used there. A further call only waits until the observer is notified. Raises
        OutputTooLong.
        """
        self.check_cancelled()
        task = self._tasks[index]
        if task.finished is not None:
            return await self._wait_until_notified(index)
        name, started_at = self._descriptions[index].name, task.started_at
        self.check_length(name, text)
        self.check_length(name, structured or "")
        with self._usage_lock:
            usage, run_usage = replace(usage or task.usage), replace(self.usage)
        event = TaskFinished(
            index,
            name,
            agent,
            text,
            started_at,
            datetime.now(UTC),
            structured,
            usage,
            run_usage,
            models or task.models,
        )
        task.finished = event
        if self._observer is not None:
            await self._notify(index, self._observer.task_finished(event))
        return None

    def require_review(self, index: int) -> None:
        """Pause the run if this finished task needs a human's approval and has none yet.

        The crew's main line stops here. Concurrent tasks finish first.
        """
        approved = any(review.is_approved for review in self.reviews.get(index, ()))
        if index in self.tasks_to_review and not approved and self._awaiting_review is None:
            self._awaiting_review = index
        self.stop_for_review()

    def stop_for_review(self) -> None:
        """Start no further task on the crew's main line while the run awaits a review."""
        if self._awaiting_review is not None and asyncio.current_task() is self.main:
            raise ReviewRequired

    @property
    def review_required(self) -> bool:
        return self._awaiting_review is not None

    def paused(self) -> Paused:
        """The paused run. Raises RuntimeError if the run awaits no review."""
        if self._awaiting_review is None:
            raise RuntimeError("the run is not paused")
        finished = {i: task.finished for i, task in self._tasks.items() if task.finished}
        return Paused(self._awaiting_review, finished)

    def rejections(self, task: Task | None) -> list[Review]:
        """The reviews that did not approve the task's earlier outputs."""
        index = self.index_of(task) if task is not None else None
        reviews = self.reviews.get(index, ()) if index is not None else ()
        return [review for review in reviews if not review.is_approved]

    def approvals(self) -> list[Review]:
        """The reviews that approved outputs; their feedback is for the next tasks."""
        return [r for reviews in self.reviews.values() for r in reviews if r.is_approved]

    @property
    def reports_steps(self) -> bool:
        """Whether steps have a receiver."""
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
        """Report a step of one of the crew's own tasks, if steps have a receiver."""
        if self._on_step is not None and index is not None:
            name = self._descriptions[index].name
            step = StepFinished(index, name, agent, thought, tool, tool_input, result)
            with outside():
                await self._on_step(step)

    def finish_guardrail(self, retries: int, *, passed: bool) -> None:
        """Report a round of a guardrail, if rounds have a receiver."""
        if self.on_guardrail is not None:
            self.on_guardrail(GuardrailRound(self.calling_task, retries, passed))

    def _task_started(self, index: int, agent: str) -> TaskStarted:
        described = self._descriptions[index]
        # A manager executes tasks of other agents.
        role = described.agent if PLACEHOLDER.search(described.agent) else agent.strip()
        return TaskStarted(index, described.name, agent, role)

    def _as_reported(self, task: TaskStarted) -> TaskStarted:
        """The start of a task as the run's observers know it."""
        return task

    def _finished(self, index: int) -> TaskFinished | None:
        task = self._tasks.get(index)
        return task.finished if task is not None else None

    async def _notify(self, index: int, notification: Coroutine[Any, Any, None]) -> None:
        notified = self._tasks[index].notified = self._loop.create_future()
        try:
            with outside():
                await notification
        except Exception as error:
            self.observer_error = self.observer_error or error
            raise
        finally:
            if not notified.done():
                notified.set_result(None)

    async def _wait_until_notified(self, index: int) -> None:
        """Wait for the observer: a run that fell back may be here before the first call returns."""
        if (notified := self._tasks[index].notified) is not None:
            await asyncio.shield(notified)
        if self.observer_error is not None:
            raise self.observer_error

    @contextmanager
    def as_side_task(self) -> Iterator[None]:
        """Within this, a task of the crew runs. If a concurrent task fails, the run ends."""
        task = asyncio.current_task()
        if task is None or task is self.main:
            yield
            return
        self.side_tasks.add(task)
        task.add_done_callback(_mark_as_handled)
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
        """The answer to an agent's model call: the journal's if it has the same call."""
        self.check_cancelled()
        index = self.index_of(task) if task is not None else None
        made = self.journal.pop(index, messages) if index is not None else None
        if made is None:
            return await call()
        answer = await made.answer
        messages[:] = made.after
        return answer

    def on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Execute `work` on the event loop and block this thread of the run until it is done."""
        if self.cancelled:
            work.close()
            raise RunCancelled
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self.cancelled_with_run(future):
            try:
                return future.result()
            except (asyncio.CancelledError, Exception) as error:
                if self.cancelled:
                    raise RunCancelled from error
                raise

    async def await_on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Execute `work` on the event loop, and await it on any, such as that of a flow."""
        if self.is_on_loop():
            return await work
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self.cancelled_with_run(future):
            return await asyncio.wrap_future(future)

    @contextmanager
    def cancelled_with_run(self, future: Future[Any]) -> Iterator[None]:
        """Within this, cancelling the run cancels `future`, which one of its threads waits for."""
        self._waited_for.add(future)
        if self.cancelled:
            future.cancel()
        try:
            yield
        finally:
            self._waited_for.discard(future)

    def outcomes(self, outputs: list[TaskOutput]) -> tuple[TaskOutcome, ...]:
        """The outcome of every task; tasks that never finished were skipped."""
        found = []
        for index, output in enumerate(outputs):
            task = self._tasks.get(index)
            finished = task.finished if task is not None else None
            found.append(
                TaskOutcome(
                    name=self._descriptions[index].name,
                    agent=output.agent,
                    text=output.raw,
                    skipped=finished is None,
                    replayed=task is not None and task.replayed,
                    started_at=finished.started_at if finished else None,
                    finished_at=finished.finished_at if finished else None,
                    models=finished.models if finished else (),
                )
            )
        return tuple(found)


async def _wait_for(waiting: Awaitable[None]) -> None:
    with outside():
        await waiting


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def current_run() -> RunContext | None:
    """The run of this thread or asyncio task; None outside of runs."""
    return _current.get()


def _mark_as_handled(task: asyncio.Task[Any]) -> None:
    """Have asyncio log no error: the run reports it, if the run is not over already."""
    if not task.cancelled():
        task.exception()
