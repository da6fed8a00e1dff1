"""Captures the outputs of a run: the text of each finished task is stored at once."""

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from typing import Any

from msgspec import to_builtins

from app.engine import OnToken, StepFinished, TaskFinished, TaskStarted
from app.prices import usd
from app.runs.events.event import Event, EventSeq, EventType
from app.runs.events.hub import EventHub
from app.runs.events.token_buffer import TokenBuffer
from app.runs.execution.call_recorder import CallRecorder
from app.runs.execution.progress import Progress
from app.runs.execution.spending import Spending
from app.runs.execution.traces import RunTrace
from app.runs.persistence.repository import RunRepository
from app.runs.records import ClaimedRun
from app.runs.texts import replace_surrogates
from storage import OutputKey, OutputStore


class Capture:
    """The observer of one attempt at a run. Implements the engine's RunObserver."""

    def __init__(
        self,
        store: OutputStore,
        rows: RunRepository,
        events: EventHub,
        claimed: ClaimedRun,
        calls: CallRecorder,
        spending: Spending,
        trace: RunTrace | None = None,
    ) -> None:
        self._spending = spending
        self._store = store
        self._rows = rows
        self._events = events
        self._calls = calls
        self._stream = claimed.stream
        self._tokens = TokenBuffer(self._relay_tokens)
        self._run_id = claimed.run_id
        self._webhooks = claimed.webhooks
        self._started_at = int(claimed.started_at.timestamp())
        self._seq = EventSeq.first(claimed.attempt)
        self._trace = trace
        self.keys: list[OutputKey] = []
        self.progress = Progress(spending.total_task_cost)

    async def task_started(self, event: TaskStarted) -> None:
        """Report the task's start."""
        if self._trace is not None:
            self._trace.start_task(event)
        now = self._rows.now()
        self.progress.start(event.index, event.name, event.agent, now)
        self._report(EventType.TASK_STARTED, event, now)

    async def task_finished(self, event: TaskFinished) -> None:
        """Store the task's text; a text that can't be stored fails the run."""
        finished_at = self._rows.now()
        filename = OutputKey.filename_from(event.name)
        key = OutputKey(self._run_id, self._started_at, filename)
        # Noted before it is written: a write that is interrupted is deleted, too.
        self.keys.append(key)
        with nullcontext() if self._trace is None else self._trace.storing(event.index):
            await self._store.persist(key, event.text)
        self.progress.finish(event.index, event.text, finished_at, event.models)
        self._tokens.flush()
        cost = self._spending.task_cost(event.index)
        self._report(
            EventType.TASK_FINISHED,
            event,
            finished_at,
            started_at=finished_at - (event.finished_at - event.started_at),
            structured=event.structured,
            usage=to_builtins(event.usage),
            run_usage=to_builtins(event.run_usage) | self._spending.counts,
            cost=None if cost is None else usd(cost),
            models=event.models,
            # The text is sent with the run's end; webhooks of tasks get it with this event.
            **({"output": replace_surrogates(event.text)} if "task" in self._webhooks else {}),
        )
        if self._trace is not None:
            self._trace.finish_task(event.index)

    @property
    def on_step(self) -> Callable[[StepFinished], Awaitable[None]] | None:
        """The receiver of agents' steps; None without a webhook for them."""
        return self._step_finished if "step" in self._webhooks else None

    async def _step_finished(self, step: StepFinished) -> None:
        self._report(
            EventType.TASK_STEP,
            step,
            self._rows.now(),
            thought=replace_surrogates(step.thought),
            tool=step.tool,
            tool_input=step.tool_input and replace_surrogates(step.tool_input),
            result=replace_surrogates(step.result),
        )

    def token_listener(self, task: TaskStarted) -> OnToken | None:
        """The listener of a model call: set if the run streams, or has subscribers to tokens."""
        if not (self._stream or self._events.needs_tokens(self._run_id)):
            return None
        return partial(self._tokens.add, task)

    def _relay_tokens(self, task: TaskStarted, text: str) -> None:
        data = {"index": task.index, "name": task.name, "text": replace_surrogates(text)}
        event = Event(self._run_id, None, EventType.TASK_TOKENS, data, self._rows.now())
        self._rows.relay_tokens(event, self._seq)

    def _report(
        self,
        type_: EventType,
        task: TaskStarted | TaskFinished | StepFinished,
        at: datetime,
        **more: Any,
    ) -> None:
        self._seq = self._seq.next()
        data = {"index": task.index, "name": task.name, "agent": task.agent, **more}
        event = Event(self._run_id, self._seq, type_, data, at)
        calls = self._calls.batch() if type_ is EventType.TASK_FINISHED else None
        if calls is None:
            self._rows.append_soon(event, self._webhooks)
        else:
            then = partial(self._calls.note_stored, calls)
            self._rows.append_soon(event, self._webhooks, calls, then)
