"""The state of one run of a flow, and of each kickoff of a crew inside it."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from crewai import Crew
from crewai.tasks.task_output import TaskOutput
from crewai.types.usage_metrics import UsageMetrics

from app.engine.calls import CallObserver, OnGuardrail
from app.engine.description import TaskDescription, task_descriptions, unique
from app.engine.results import (
    OnStep,
    OnToken,
    RunObserver,
    StepFinished,
    TaskFinished,
    TaskOutcome,
    TaskStarted,
)
from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.threads import WorkThreads

RESULT = 0
"""The index of a flow's own task, `result`; the tasks of its crews follow it."""

_T = TypeVar("_T")
Count = Callable[[UsageMetrics], None]


class FlowContext(RunContext):
    """A run of a flow. The flow's code runs in threads and an event loop of its own.

    `configure` prepares a newly built crew for a run. `native` allows the native executor for the
    flow's crews.
    """

    def __init__(
        self,
        *,
        result: TaskDescription,
        observer: RunObserver | None,
        threads: WorkThreads,
        on_step: OnStep | None,
        configure: Callable[[Crew], None],
        native: bool,
        max_output_chars: int,
        calls: CallObserver | None,
        on_guardrail: OnGuardrail | None,
    ) -> None:
        super().__init__(
            tasks=(result,),
            observer=observer,
            threads=threads,
            on_step=on_step,
            max_output_chars=max_output_chars,
            calls=calls,
            on_guardrail=on_guardrail,
        )
        self.result = result
        self.configure = configure
        self.native = native
        self.task_outputs: list[TaskOutput] = []
        self._lock = threading.Lock()
        self._crews: set[CrewContext] = set()
        self._counts: list[Count] = []
        self._stop: Callable[[], object] | None = None

    @contextmanager
    def kickoff(self, crew: Crew) -> Iterator["CrewContext"]:
        """Within this, a crew of the flow runs: its tasks become tasks of the run."""
        self.check_cancelled()
        with self._lock:
            first = len(self._descriptions)
            names = [task.name for task in self._descriptions]
            for task in task_descriptions(crew):
                names.append(unique(task.name, names))
                self._descriptions += (TaskDescription(names[-1], task.agent),)
            run = CrewContext(self, crew, first)
            self._crews.add(run)
        try:
            with run.activate():
                run.check_cancelled()
                yield run
        finally:
            self._crews.discard(run)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """In the flow's own event loop: within this, cancelling the run cancels this task."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        try:
            self.check_cancelled()
            yield
        finally:
            self._stop = None

    def cancel(self) -> None:
        super().cancel()
        with self._lock:
            crews = list(self._crews)
        for crew in crews:
            crew.cancel()
        if (stop := self._stop) is not None:
            with contextlib.suppress(RuntimeError):  # its loop has ended
                stop()

    async def from_own_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """From the flow's own event loop: execute `work` on the engine's.

        Cancelling this cancels the work.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        with self.cancelled_with_run(future):
            return await asyncio.wrap_future(future)

    def task_at(self, index: int, agent: str) -> TaskStarted:
        """The start of a task of one of the flow's crews."""
        return self._task_started(index, agent)

    def add_usage(self, metrics: UsageMetrics) -> None:
        super().add_usage(metrics)
        for count in list(self._counts):
            count(metrics)

    def count_with(self, count: Count) -> None:
        """Call `count` with all further usage of the run."""
        self._counts.append(count)

    def stop_counting(self, count: Count) -> None:
        with contextlib.suppress(ValueError):
            self._counts.remove(count)

    def outcomes(self, outputs: list[TaskOutput]) -> tuple[TaskOutcome, ...]:
        """The outcome of every known task; tasks that have not finished count as skipped."""
        found = []
        for index, task in enumerate(self._descriptions):
            finished = self._finished(index)
            found.append(
                TaskOutcome(
                    name=task.name,
                    agent=finished.agent if finished else task.agent,
                    text=finished.text if finished else "",
                    skipped=finished is None,
                    replayed=False,
                    started_at=finished.started_at if finished else None,
                    finished_at=finished.finished_at if finished else None,
                    models=finished.models if finished else (),
                )
            )
        return tuple(found)


class CrewContext(RunContext):
    """One kickoff of a crew inside a flow. Its events and usage also belong to the flow."""

    def __init__(self, flow: FlowContext, crew: Crew, first: int) -> None:
        observer = _TasksOfTheFlow(flow, first)
        super().__init__(
            tasks=task_descriptions(crew),
            observer=observer,
            threads=flow.threads,
            on_step=observer.step_finished if flow.reports_steps else None,
            loop=flow._loop,
            max_output_chars=flow.max_output_chars,
            calls=flow.calls,
            on_guardrail=flow.on_guardrail,
        )
        self.model_errors = flow.model_errors
        self.flow_states = flow.flow_states
        self.files = flow.files
        self.remembering = flow
        self.mcp_scope = flow.mcp_scope
        self.models = flow.models
        self._flow = flow
        self._first = first
        self.bind(crew)

    def add_usage(self, metrics: UsageMetrics) -> None:
        super().add_usage(metrics)
        # In a context without a task, which has counted it.
        contextvars.Context().run(self._flow.add_usage, metrics)

    @property
    def reads_files(self) -> bool:
        return True

    def check_cancelled(self) -> None:
        super().check_cancelled()
        self._flow.check_cancelled()

    def _stopped(self, error: Exception) -> Exception:
        return self._flow._stopped(error)

    def _as_reported(self, task: TaskStarted) -> TaskStarted:
        return self._flow.task_at(self._first + task.index, task.agent)


class _TasksOfTheFlow:
    """Reports a crew's tasks to the flow's observer, with indices from `first`."""

    def __init__(self, flow: FlowContext, first: int) -> None:
        self._flow = flow
        self._first = first

    async def task_started(self, event: TaskStarted) -> None:
        await self._flow.start_task(self._first + event.index, event.agent)

    async def task_finished(self, event: TaskFinished) -> None:
        await self._flow.finish_task(
            self._first + event.index,
            event.agent,
            event.text,
            event.structured,
            event.models,
            event.usage,
        )

    def token_listener(self, task: TaskStarted) -> OnToken | None:
        return self._flow.token_listener(self._first + task.index, task.agent)

    async def step_finished(self, step: StepFinished) -> None:
        await self._flow.finish_step(
            self._first + step.index,
            step.agent,
            thought=step.thought,
            result=step.result,
            tool=step.tool,
            tool_input=step.tool_input,
        )


def current_flow() -> FlowContext | None:
    """The flow whose own code runs here; None inside its crews."""
    run = current_run()
    return run if isinstance(run, FlowContext) else None
