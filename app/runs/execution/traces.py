"""The trace of a run: spans of an attempt, its tasks, its calls and its stored outputs."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from app.engine import CallObserver, GuardrailRound, ModelCall, TaskStarted, ToolCall
from app.runs.records import ClaimedRun, Run, RunStatus, Settlement
from app.telemetry import content
from app.telemetry.tracing import EventName, Key, SpanName, TraceHeaders, set_trace_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from app.telemetry.sdk import Tracing

# CrewAI's names of providers that have another name in OpenTelemetry's conventions.
_PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "xai": "x_ai",
}
# The conventions' word for an error of no known type.
_OTHER: Final = "_OTHER"
_STOPPED: Final = "worker_stopped"
_LOST: Final = "worker_lost"
_FIRST: Final = 1
_NANOSECONDS: Final = 1e9
_NO_STEP: Final = nullcontext()


class RunTrace(CallObserver):
    """The spans of one attempt at a run.

    Of an attempt that is not sampled there are none. Its requests to models still have the context,
    which contains that decision. Tasks and calls begin and end in several threads.

    `execution_mode` is set once it is known.
    """

    def __init__(self, tracing: "Tracing", span: "Span") -> None:
        """`span` is that of the attempt."""
        self._tracing = tracing
        self._span = span
        self._is_recording = span.is_recording()
        self._context = tracing.headers_of(span)
        self._headers = self._context.as_dict()
        self._tasks: dict[int, Span] = {}
        self._open_tasks: dict[int, Span] = {}
        self._calls: dict[ModelCall | ToolCall, Span] = {}
        self._tokens: dict[ToolCall, Any] = {}
        self._error_type: str | None = _STOPPED
        self._is_over = False
        self._is_lost = False
        self.execution_mode: str | None = None

    @classmethod
    def begin(cls, tracing: "Tracing", claimed: ClaimedRun, dispatched_at: int) -> Self:
        """Begin the span of an attempt, at the time when the run was dispatched."""
        span = tracing.start_attempt(
            claimed.run_id,
            claimed.started_at,
            claimed.trace,
            _attributes(claimed, claimed.attempt),
            name=SpanName.RUN.format(claimed.crew),
            started_at=dispatched_at,
            previous=claimed.previous_started_at,
        )
        trace = cls(tracing, span)
        set_trace_id(trace._context)
        if trace._is_recording:
            tracing.start(SpanName.WAIT, span, {}, started_at=dispatched_at).end()
        return trace

    @classmethod
    def of_lost_attempt(
        cls,
        tracing: "Tracing",
        run: ClaimedRun | Run,
        attempt: int,
        started_at: datetime,
        parent: TraceHeaders | None,
        previous: datetime | None,
    ) -> Self:
        """The span of an attempt that began then and whose worker was lost with it.

        Its parts have arrived. `parent` is the context of the run's request, and `previous` the
        start of the attempt before. The span is written if this is ended by `end_lost_attempt`, or
        if the run is settled within it.
        """
        begun = run.created_at if attempt == _FIRST else started_at
        span = tracing.start_attempt(
            run.run_id,
            started_at,
            parent,
            _attributes(run, attempt),
            name=SpanName.RUN.format(run.crew),
            started_at=int(begun.timestamp() * _NANOSECONDS),
            previous=previous,
        )
        trace = cls(tracing, span)
        trace._is_lost = True
        return trace

    def end_lost_attempt(self) -> None:
        """End the span of a lost attempt after which another one has begun."""
        self._tracing.fail(self._span, _LOST)
        self._span.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all spans: by then the run is settled or paused, or this process stops."""
        self._is_over = True
        for spans in (self._calls, self._open_tasks):
            with suppress(KeyError):  # a thread ends its call just now
                while spans:
                    _, span = spans.popitem()
                    self._tracing.fail(span, self._error_type or _OTHER)
                    span.end()
        if self._is_lost:  # the attempt that has begun meanwhile has written this one's span
            return
        if self._error_type is not None:
            self._tracing.fail(self._span, self._error_type)
        if self.execution_mode is not None:
            self._span.set_attribute(Key.EXECUTION_MODE, self.execution_mode)
        self._span.end()

    def set_settlement(self, settlement: Settlement | None, error_type: str | None) -> None:
        """Note how the run was settled; None if another attempt has begun meanwhile."""
        self._is_lost = settlement is None
        if settlement is None:
            return
        if settlement.status is RunStatus.CANCELLED:
            self.set_status(settlement.status, RunStatus.CANCELLED)
        else:
            self.set_status(settlement.status, error_type)

    def set_status(self, status: RunStatus, error_type: str | None = None) -> None:
        """Note the state in which the attempt leaves the run."""
        self._error_type = error_type
        self._span.set_attribute(Key.RUN_STATUS, status)

    def start_task(self, task: TaskStarted) -> None:
        """Begin the span of a task."""
        if self._is_recording:
            self._tasks[task.index] = self._open_tasks[task.index] = self._tracing.start(
                SpanName.TASK.format(task.role),
                self._span,
                {Key.OPERATION: "invoke_agent", Key.AGENT: task.role, Key.TASK: task.name},
            )

    def finish_task(self, index: int) -> None:
        """End the span of a task that has succeeded."""
        if (span := self._open_tasks.pop(index, None)) is not None:
            span.end()

    def add_guardrail(self, finished: GuardrailRound) -> None:
        """Add a round of a guardrail to its task."""
        if self._is_recording and not self._is_over:
            self._span_of(finished.task).add_event(
                EventName.GUARDRAIL,
                {
                    Key.GUARDRAIL_PASSED: finished.passed,
                    Key.GUARDRAIL_RETRIES: finished.retries,
                },
            )

    def storing(self, index: int) -> AbstractContextManager[None]:
        """The span of storing a task's output, for the length of a block."""
        return self._step(SpanName.STORE, self._tasks.get(index, self._span))

    def settling(self) -> AbstractContextManager[None]:
        """The span of settling the run, for the length of a block."""
        return self._step(SpanName.SETTLE, self._span)

    def call_started(self, call: ModelCall | ToolCall) -> None:
        """Begin the span of a call, and put its context into the request of the call."""
        span, headers = self._span, self._headers
        if self._is_recording and not self._is_over:
            parent = self._calls.get(call.within) if call.within is not None else None
            span = self._start_call(call, parent or self._span_of(call.task))
            self._calls[call] = span
            headers = self._tracing.headers_of(span).as_dict()
        if isinstance(call, ModelCall):
            call.headers = {**call.headers, **headers}
        else:
            self._tokens[call] = self._tracing.make_current(span)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        """End the span of a call."""
        if isinstance(call, ToolCall) and (token := self._tokens.pop(call, None)) is not None:
            self._tracing.restore_current(token)
        if (span := self._calls.pop(call, None)) is None:
            return
        span.set_attributes(_result_of(call))
        if self._tracing.captures_content:
            span.set_attributes(_content_after(call))
        if call.error is not None:
            self._tracing.fail(span, type(call.error).__qualname__)
        span.end(call.finished_at)

    def _span_of(self, task: TaskStarted | None) -> "Span":
        return self._span if task is None else self._tasks.get(task.index, self._span)

    def _start_call(self, call: ModelCall | ToolCall, parent: "Span") -> "Span":
        more = _content_before(call) if self._tracing.captures_content else {}
        if isinstance(call, ModelCall):
            model = call.model.removeprefix(f"{call.provider}/")
            attributes = {
                Key.OPERATION: "chat",
                Key.MODEL: model,
                Key.PROVIDER: _PROVIDERS.get(call.provider, call.provider),
            }
            name, start = SpanName.MODEL_CALL.format(model), self._tracing.start_client
        else:
            attributes = {
                Key.OPERATION: "execute_tool",
                Key.TOOL: call.tool,
                Key.TOOL_TYPE: "function",
            }
            name, start = SpanName.TOOL_CALL.format(call.tool), self._tracing.start
        return start(name, parent, attributes | more, started_at=call.started_at)

    def _step(self, name: str, parent: "Span") -> AbstractContextManager[None]:
        return self._recorded_step(name, parent) if self._is_recording else _NO_STEP

    @contextmanager
    def _recorded_step(self, name: str, parent: "Span") -> Iterator[None]:
        span = self._tracing.start(name, parent, {})
        try:
            yield
        except BaseException as error:
            self._tracing.fail(span, type(error).__qualname__)
            raise
        finally:
            span.end()


def _attributes(run: ClaimedRun | Run, attempt: int) -> dict[str, Any]:
    attributes = {
        Key.OPERATION: "invoke_workflow",
        Key.AGENT: run.crew,
        Key.RUN_ID: str(run.run_id),
        Key.ATTEMPT: attempt,
    }
    if run.context_id is not None:
        attributes[Key.CONVERSATION] = run.context_id
    if run.end_user:
        attributes[Key.END_USER] = run.end_user
    return attributes


def _result_of(call: ModelCall | ToolCall) -> dict[str, Any]:
    if isinstance(call, ToolCall):
        return {}
    attributes: dict[str, Any] = {
        Key.INPUT_TOKENS: call.input_tokens,
        Key.OUTPUT_TOKENS: call.output_tokens,
        Key.RETRIES: call.retries,
        Key.WAITED: call.waited / _NANOSECONDS,
    }
    if call.cached_tokens:
        attributes[Key.CACHED_TOKENS] = call.cached_tokens
    if call.reasoning_tokens:
        attributes[Key.REASONING_TOKENS] = call.reasoning_tokens
    if call.finish_reason is not None:
        attributes[Key.FINISH_REASONS] = [call.finish_reason]
    if call.first_token_at is not None:
        seconds = (call.first_token_at - call.started_at) / _NANOSECONDS
        attributes[Key.TIME_TO_FIRST_CHUNK] = seconds
    return attributes


def _content_before(call: ModelCall | ToolCall) -> dict[str, str]:
    """The texts that a call begins with; CrewAI extends the list of messages later."""
    if isinstance(call, ToolCall):
        return {Key.TOOL_ARGUMENTS: content.to_json(call.input)}
    prompt = content.prompt(call.messages)
    attributes = {Key.INPUT: prompt.messages}
    if prompt.system is not None:
        attributes[Key.SYSTEM] = prompt.system
    if call.tools:
        attributes[Key.TOOLS] = content.to_json(call.tools)
    return attributes


def _content_after(call: ModelCall | ToolCall) -> dict[str, str]:
    """The texts that a call ends with; a call that failed has none."""
    if call.error is not None:
        return {}
    if isinstance(call, ToolCall):
        return {Key.TOOL_RESULT: content.to_json(call.result)}
    return {Key.OUTPUT: content.answer(call.answer, call.finish_reason)}
