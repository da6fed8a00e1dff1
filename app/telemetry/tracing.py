"""Traces: the names of their spans and attributes, and the context that travels with a run.

The standard variables `OTEL_*` configure traces. Without an endpoint, OpenTelemetry is not
imported, and nothing is made: `app.telemetry.sdk` is imported only with one.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Final, NamedTuple, TypeGuard
from uuid import UUID

if TYPE_CHECKING:
    from app.telemetry.sdk import Tracing


logger = logging.getLogger("crew_capture.traces")


class SpanName:
    """The names of spans: `{}` is the method and route, crew, role, model or tool."""

    REQUEST: Final = "{}"
    RUN: Final = "invoke_workflow {}"
    WAIT: Final = "wait for slot"
    TASK: Final = "invoke_agent {}"
    MODEL_CALL: Final = "chat {}"
    TOOL_CALL: Final = "execute_tool {}"
    STORE: Final = "store output"
    SETTLE: Final = "settle run"


class EventName:
    """The names of events within spans."""

    GUARDRAIL: Final = "crewcapture.guardrail"


class Key:
    """The keys of attributes.

    Those of OpenTelemetry's conventions for generative AI are not the constants of its package,
    which are older.
    """

    # Of all spans that failed: the class of the error, or the run's `error_type`.
    ERROR_TYPE: Final = "error.type"
    # Requests
    METHOD: Final = "http.request.method"
    ROUTE: Final = "http.route"
    STATUS_CODE: Final = "http.response.status_code"
    PROTOCOL: Final = "crewcapture.protocol"
    # Runs
    RUN_ID: Final = "crewcapture.run.id"
    ATTEMPT: Final = "crewcapture.run.attempt"
    RUN_STATUS: Final = "crewcapture.run.status"
    EXECUTION_MODE: Final = "crewcapture.execution_mode"
    CONVERSATION: Final = "gen_ai.conversation.id"
    END_USER: Final = "user.id"
    # Runs, tasks and calls
    OPERATION: Final = "gen_ai.operation.name"
    AGENT: Final = "gen_ai.agent.name"
    TASK: Final = "crewcapture.task.name"
    GUARDRAIL_PASSED: Final = "crewcapture.guardrail.passed"
    GUARDRAIL_RETRIES: Final = "crewcapture.guardrail.retries"
    # Model calls
    MODEL: Final = "gen_ai.request.model"
    PROVIDER: Final = "gen_ai.provider.name"
    INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
    OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
    CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
    REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
    FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
    TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
    RETRIES: Final = "crewcapture.model_call.retries"
    WAITED: Final = "crewcapture.model_call.wait_seconds"
    # Tool calls
    TOOL: Final = "gen_ai.tool.name"
    TOOL_TYPE: Final = "gen_ai.tool.type"
    # Content, which is off by default
    SYSTEM: Final = "gen_ai.system_instructions"
    INPUT: Final = "gen_ai.input.messages"
    OUTPUT: Final = "gen_ai.output.messages"
    TOOLS: Final = "gen_ai.tool.definitions"
    TOOL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
    TOOL_RESULT: Final = "gen_ai.tool.call.result"


class TraceHeaders(NamedTuple):
    """The context of a span, as the headers of W3C Trace Context have it."""

    traceparent: str
    tracestate: str | None = None

    def as_dict(self) -> dict[str, str]:
        """The headers of a request within the span."""
        headers = {"traceparent": self.traceparent}
        return headers if not self.tracestate else headers | {"tracestate": self.tracestate}


# Later versions may have more fields, after another hyphen.
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MEMBER: Final = r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{1,256}"
_TRACESTATE: Final = re.compile(rf"[ \t]*{_MEMBER}(?:,[ \t]*{_MEMBER}){{0,31}}")
_MAX_CHARACTERS: Final = 512


def trace_headers(traceparent: object, tracestate: object = None) -> TraceHeaders | None:
    """The context in a client's headers; None without a well-formed `traceparent`.

    A `tracestate` that is not well-formed is ignored, as the standard requires.
    """
    if not _is_short(traceparent) or not (match := _TRACEPARENT.fullmatch(traceparent.strip())):
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) * int(span_id, 16):
        return None
    if not _is_short(tracestate) or not _TRACESTATE.fullmatch(tracestate):
        tracestate = None
    return TraceHeaders(f"00-{trace_id}-{span_id}-{flags}", tracestate)


@dataclass(slots=True)
class RequestTrace:
    """A request as traces show it. `given` is the context that its client sent.

    Its span is made when the request submits its first run; requests without runs have none.
    `headers` is the context of that span, and `end` ends it with the status of the response.
    """

    method: str
    route: str
    protocol: str
    given: TraceHeaders | None
    started_at: int = field(default_factory=time.time_ns)
    headers: TraceHeaders | None = None
    end: Callable[[int], None] | None = None


current_request: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)
"""The request that the current code handles; None without traces."""

_trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)


def current_trace_id() -> str | None:
    """The trace id of the current code's request or run, as 32 hexadecimal digits."""
    return _trace_id.get()


def set_trace_id(headers: TraceHeaders) -> None:
    """Make the trace id of this context the one that `current_trace_id` returns."""
    _trace_id.set(headers.traceparent[3:35])


def is_configured() -> bool:
    """Whether the environment names an endpoint for traces, and does not turn them off."""
    exporter = _variable("OTEL_TRACES_EXPORTER")
    has_endpoint = _variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    is_disabled = _variable("OTEL_SDK_DISABLED") == "true"
    return bool(has_endpoint) and not is_disabled and exporter in ("", "otlp")


def open_tracing(version: str, worker: str) -> "Tracing | None":
    """Start to make traces, in this process; None if they are not configured.

    Call it after the last fork. `version` is that of the service, and `worker` the name of this
    process.
    """
    if not is_configured():
        return None
    protocol = _variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in ("", "http/protobuf"):
        logger.warning("Traces are sent by OTLP over HTTP: the protocol that is set is ignored")
    tracing: Tracing = import_module("app.telemetry.sdk").Tracing(version, worker)
    return tracing


def _variable(*names: str) -> str:
    """The first of these environment variables that is set; '' without one."""
    values = (os.environ.get(name, "").strip().lower() for name in names)
    return next(filter(None, values), "")


# The ids of runs' spans follow from their rows. So a later attempt links the one before, webhooks
# name the run, and a run without a request has one trace, without any further write.
def attempt_span_id(run_id: UUID, started_at: datetime) -> int:
    """The id of the span of the attempt that started then."""
    microseconds = (started_at - _EPOCH) // timedelta(microseconds=1)
    return _number(b"%b%d" % (run_id.bytes, microseconds), 8)


def run_trace_id(run_id: UUID) -> int:
    """The trace id of a run that no traced request has submitted."""
    return _number(run_id.bytes, 16)


def attempt_headers(
    run_id: UUID, started_at: datetime | None, traceparent: str | None, tracestate: str | None
) -> dict[str, str]:
    """The headers of a request on behalf of a run's last attempt, from the run's row.

    Empty for a run that no traced request has submitted.
    """
    if traceparent is None:
        return {}
    if started_at is not None:
        span_id = attempt_span_id(run_id, started_at)
        traceparent = f"{traceparent[:36]}{span_id:016x}{traceparent[52:]}"
    return TraceHeaders(traceparent, tracestate).as_dict()


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _number(source: bytes, size: int) -> int:
    """A number of `size` bytes, never 0, that is like a random one."""
    return int.from_bytes(hashlib.blake2b(source, digest_size=size).digest()) or 1


def _is_short(header: object) -> TypeGuard[str]:
    return isinstance(header, str) and len(header) <= _MAX_CHARACTERS
