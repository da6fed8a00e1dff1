"""Captures a run's outputs: each finished task's text goes to the store at once."""

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from app.engine import StepFinished, TaskFinished, TaskStarted
from app.engine.llm import OnToken, listener_of_call
from app.runs.events.hub import EVENTS_PER_ATTEMPT, Event, EventHub
from app.runs.events.token_buffer import TokenBuffer
from app.runs.persistence.repository import ClaimedRun, RunRepository
from app.runs.texts import replace_surrogates
from storage import OutputKey, OutputStore


class Capture:
    """The observer of one attempt at a run. Implements the engine's RunObserver."""

    def __init__(
        self, store: OutputStore, rows: RunRepository, events: EventHub, taken: ClaimedRun
    ) -> None:
        self._store = store
        self._rows = rows
        self._events = events
        self._stream = taken.stream
        self._words = TokenBuffer(self._tell_words)
        self._run_id = taken.run_id
        self._webhooks = taken.webhooks
        self._started_at = int(taken.started_at.timestamp())
        self._seq = taken.attempt * EVENTS_PER_ATTEMPT
        self.keys: list[OutputKey] = []

    async def task_started(self, event: TaskStarted) -> None:
        """Tell of it; its model calls stream if that was asked for, or if somebody watches then."""
        self._tell("task.started", event, datetime.now(UTC))
        listener_of_call.set(lambda: self._listener(event))

    async def task_finished(self, event: TaskFinished) -> None:
        """Store the task's text; a text that can't be stored fails the run."""
        filename = OutputKey.filename_from(event.name)
        key = OutputKey(self._run_id, self._started_at, filename)
        # Noted before it is written: a write that was cut short is deleted, too.
        self.keys.append(key)
        await self._store.persist(key, event.text)
        self._words.flush()
        self._tell(
            "task.finished",
            event,
            event.finished_at,
            started_at=event.started_at,
            structured=event.structured,
            usage=asdict(event.usage),
            # The text comes with the run's end; whoever asks for it before gets it with the event.
            **({"output": replace_surrogates(event.text)} if "task" in self._webhooks else {}),
        )

    @property
    def on_step(self) -> Callable[[StepFinished], Awaitable[None]] | None:
        """What is to hear of agents' steps; None where nobody asked for them."""
        return self._step_finished if "step" in self._webhooks else None

    async def _step_finished(self, step: StepFinished) -> None:
        self._tell(
            "task.step",
            step,
            datetime.now(UTC),
            thought=replace_surrogates(step.thought),
            tool=step.tool,
            tool_input=step.tool_input and replace_surrogates(step.tool_input),
            result=replace_surrogates(step.result),
        )

    def _listener(self, task: TaskStarted) -> OnToken | None:
        if not (self._stream or self._events.wants_tokens(self._run_id)):
            return None
        return partial(self._words.add, task)

    def _tell_words(self, task: TaskStarted, text: str) -> None:
        data = {"index": task.index, "name": task.name, "text": replace_surrogates(text)}
        event = Event(self._run_id, None, "task.tokens", data, datetime.now(UTC))
        self._rows.pass_on(event, self._seq)

    def _tell(
        self, type_: str, task: TaskStarted | TaskFinished | StepFinished, at: datetime, **more: Any
    ) -> None:
        self._seq += 1
        data = {"index": task.index, "name": task.name, "agent": task.agent, **more}
        event = Event(self._run_id, self._seq, type_, data, at)
        self._rows.append_soon(event, self._webhooks)
