"""The model calls and tool calls of a run, and their observer."""

import contextvars
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.engine.results import TaskStarted


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """A call that a run makes. Times are in nanoseconds since the epoch.

    `task` is the task that it belongs to; None outside of tasks. `within` is the tool call that
    makes it, as when a tool delegates to another agent. `error` is set if the call failed or was
    cancelled.
    """

    task: TaskStarted | None
    within: "ToolCall | None"
    started_at: int = field(default_factory=time.time_ns)
    finished_at: int | None = None
    error: BaseException | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ModelCall(Call):
    """A call to a model, with the retries that the model's client makes within it.

    `model` is the name as LLM_MODEL has it, and `provider` CrewAI's name of the provider.
    `messages` is CrewAI's list, which CrewAI extends after the call. Tokens are known when the call
    is finished, as the model reported them. `first_token_at` is known for streamed answers only.
    `max_tokens` is the model's limit of an answer, if it has one. `waited` is the time for a slot
    of the connection pool, in nanoseconds. The pool adds `headers` to the request. `api_key` is the
    key of the call. The pool calls `on_refused` with the seconds to wait for each response with
    429, and counts these as `refused`. An observer sets `cost`, in nano-dollars, when the call is
    finished; None if it is not known.
    """

    model: str
    provider: str
    messages: Any
    tools: Any
    max_tokens: int | None = None
    answer: Any = None
    first_token_at: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int | None = None
    finish_reason: str | None = None
    retries: int = 0
    waited: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    api_key: str = field(default="", repr=False)
    refused: int = 0
    on_refused: Callable[[float], None] | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ToolCall(Call):
    """The execution of a tool: not one that is answered from CrewAI's cache, or refused.

    `tool` is the name as models call it, `executed` CrewAI's tool.
    """

    tool: str
    executed: object
    input: Any
    result: Any = None


@dataclass(frozen=True, slots=True)
class GuardrailRound:
    """A check of a task's output by a guardrail.

    `retries` counts the outputs that the guardrail has rejected before.
    """

    task: TaskStarted | None
    retries: int
    passed: bool


OnGuardrail = Callable[[GuardrailRound], None]
"""Receives each round of a guardrail, in the thread that calls it; must neither block nor raise."""


class CallObserver:
    """Receives the calls of a run, each in the thread and the context that makes it.

    This base admits every call and ignores the rest.
    """

    def admit(self, call: ModelCall) -> Awaitable[None] | None:
        """Called before a model call; may change its `headers`.

        The call waits for the result, which the engine awaits on its event loop. An error that this
        raises, at once or when it is awaited, ends the run with that error. The call is then
        neither made nor reported.
        """
        return None

    def call_started(self, call: ModelCall | ToolCall) -> None:
        """Called as a call begins; may change its `headers`. Must neither block nor raise."""

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """Called once for each started call, however it ended. Must neither block nor raise."""


active_model_call: contextvars.ContextVar[ModelCall | None] = contextvars.ContextVar(
    "crew_capture_model_call", default=None
)
"""The model call under way in this thread or asyncio task."""

active_tool_call: contextvars.ContextVar[ToolCall | None] = contextvars.ContextVar(
    "crew_capture_tool_call", default=None
)
"""The tool call under way in this thread or asyncio task."""


def note_token() -> None:
    """Record that the active model call has received text of its answer."""
    call = active_model_call.get()
    if call is not None and call.first_token_at is None:
        call.first_token_at = time.time_ns()


def note_refusal(seconds: float) -> None:
    """Record that the server of the active model call refuses calls for so long (429)."""
    call = active_model_call.get()
    if call is not None:
        call.refused += 1
        if call.on_refused is not None:
            call.on_refused(seconds)


def characters(messages: Any) -> int:
    """The characters of a call's messages: a text, or CrewAI's messages."""
    if isinstance(messages, str):
        return len(messages)
    return sum(len(str(message.get("content") or "")) for message in messages or ())


def note_finish_reason(reason: object) -> None:
    """Record why the model ended its answer, if the active model call reports it."""
    call = active_model_call.get()
    if call is not None and isinstance(reason, str):
        call.finish_reason = reason
