"""The spans of this service, by OpenTelemetry's SDK: imported only if traces are configured."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Sequence
from contextvars import Token
from datetime import datetime
from typing import Final
from uuid import UUID

from opentelemetry import context as current_context
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from app.telemetry.recorded_span import Attributes, RecordedSpan, SpanTarget
from app.telemetry.tracing import (
    Key,
    RequestTrace,
    SpanName,
    TraceHeaders,
    attempt_span_id,
    current_request,
    run_trace_id,
    set_trace_id,
)

logger = logging.getLogger("crew_capture.traces")

_CAPTURE_CONTENT: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
# The time for the last spans when a process stops, whatever their receiver does.
_CLOSE_SECONDS: Final = 5.0
_WARNING_SECONDS: Final = 60.0
_FIRST_SERVER_ERROR: Final = 500
# The samplers of OpenTelemetry's specification. Their decision on a span is that on the spans
# within it.
_SAMPLERS: Final = {
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
}


class Tracing:
    """Makes spans, and sends them beside the runs: no run waits for a receiver, or fails with it.

    The provider is this service's own. The global one is for the code of crews, and CrewAI may set
    it.
    """

    def __init__(self, version: str, worker: str) -> None:
        """`worker` is the name of this process, as in the rows of its runs."""
        _limit_warnings()
        resource = _resource(version, worker)
        # The SDK's provider reads the sampler from the environment. It makes no spans.
        self._sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler
        sampler = os.environ.get(OTEL_TRACES_SAMPLER, "parentbased_always_on").lower().strip()
        self._is_inherited = sampler in _SAMPLERS
        self._processor = BatchSpanProcessor(_Exporter(OTLPSpanExporter()))
        scope = InstrumentationScope("crew-capture", version)
        self._target = SpanTarget(resource, scope, self._processor)
        self._ids = RandomIdGenerator()
        self.captures_content: Final = os.environ.get(_CAPTURE_CONTENT, "").lower() == "true"
        """True if spans have the texts of users and models."""

    def start(
        self,
        name: str,
        parent: Span | None,
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        started_at: int | None = None,
        links: Sequence[Link] = (),
        ids: tuple[int, int] | None = None,
    ) -> Span:
        """Begin a span; `started_at` is in nanoseconds since the epoch, by default now.

        Samplers see the name, the kind and these attributes only. `ids` are those of its trace
        and of the span, by default random ones. Within a parent, the trace is the parent's.
        """
        within = None if parent is None else parent.get_span_context()
        if within is not None:
            trace_id = within.trace_id
        else:
            trace_id = ids[0] if ids is not None else self._ids.generate_trace_id()
        span_id = ids[1] if ids is not None else self._ids.generate_span_id()
        if self._is_inherited and within is not None and isinstance(parent, RecordedSpan):
            is_recorded, flags, state = True, within.trace_flags, within.trace_state
        else:
            context = Context() if parent is None else set_span_in_context(parent, Context())
            sampled = self._sampler.should_sample(context, trace_id, name, kind, attributes, links)
            is_recorded = sampled.decision is not Decision.DROP
            flags, state = TraceFlags(), sampled.trace_state or TraceState.get_default()
            attributes = sampled.attributes or {}
            if sampled.decision is Decision.RECORD_AND_SAMPLE:
                flags = TraceFlags(TraceFlags.SAMPLED)
            if within is None or within.trace_flags.random_trace_id:
                flags = TraceFlags(flags | TraceFlags.RANDOM_TRACE_ID)
        own = SpanContext(trace_id, span_id, is_remote=False, trace_flags=flags, trace_state=state)
        if not is_recorded:
            return NonRecordingSpan(own)
        return RecordedSpan(self._target, name, own, within, kind, attributes, links, started_at)

    def start_client(
        self, name: str, parent: Span, attributes: Attributes, *, started_at: int
    ) -> Span:
        """Begin the span of a request to another service."""
        return self.start(name, parent, attributes, kind=SpanKind.CLIENT, started_at=started_at)

    def headers_of_request(self) -> TraceHeaders | None:
        """The context of the current request's span, which the first call begins.

        None outside of requests, as in commands.
        """
        request = current_request.get()
        if request is None:
            return None
        if request.headers is None:
            self._start_request(request)
        return request.headers

    def start_attempt(
        self,
        run_id: UUID,
        attempt_started_at: datetime,
        parent: TraceHeaders | None,
        attributes: Attributes,
        *,
        name: str,
        started_at: int,
        previous: datetime | None,
    ) -> Span:
        """Begin the span of an attempt at a run, within `parent`, the context of its request.

        `previous` is the start of the attempt before: the span links it.
        """
        remote = None if parent is None else _remote(parent)
        links: list[Link] = []
        trace_id = run_trace_id(run_id)
        if previous is not None:
            context = remote.get_span_context() if remote is not None else None
            before = SpanContext(
                context.trace_id if context is not None else trace_id,
                attempt_span_id(run_id, previous),
                is_remote=True,
                trace_flags=context.trace_flags if context is not None else TraceFlags(1),
            )
            links.append(Link(before))
        return self.start(
            name,
            remote,
            attributes,
            started_at=started_at,
            links=links,
            ids=(trace_id, attempt_span_id(run_id, attempt_started_at)),
        )

    @staticmethod
    def headers_of(span: Span) -> TraceHeaders:
        """The context of a span, also of one that is not sampled: the decision is in it."""
        context = span.get_span_context()
        return TraceHeaders(
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}",
            context.trace_state.to_header() or None,
        )

    @staticmethod
    def fail(span: Span, error_type: str) -> None:
        """Mark a span as failed, without the text of the error."""
        span.set_attribute(Key.ERROR_TYPE, error_type)
        span.set_status(StatusCode.ERROR)

    @staticmethod
    def make_current(span: Span) -> Token[Context]:
        """Make `span` the parent of spans that other code begins in this thread or asyncio task."""
        if isinstance(span, RecordedSpan):
            span.is_shared = True
        return current_context.attach(set_span_in_context(span))

    @staticmethod
    def restore_current(token: Token[Context]) -> None:
        """Undo `make_current`, in the same thread or asyncio task."""
        current_context.detach(token)

    async def aclose(self) -> None:
        """Send the remaining spans, and stop: within some seconds, whatever their receiver does."""
        # Not one of asyncio's threads, which the end of the process waits for.
        thread = threading.Thread(target=self._processor.shutdown, name="traces-end", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, _CLOSE_SECONDS)

    def _start_request(self, request: RequestTrace) -> None:
        attributes = {
            Key.METHOD: request.method,
            Key.ROUTE: request.route,
            Key.PROTOCOL: request.protocol,
        }
        span = self.start(
            SpanName.REQUEST.format(f"{request.method} {request.route}"),
            None if request.given is None else _remote(request.given),
            attributes,
            kind=SpanKind.SERVER,
            started_at=request.started_at,
        )
        request.headers = self.headers_of(span)
        set_trace_id(request.headers)

        def end(status: int) -> None:
            if status:
                span.set_attribute(Key.STATUS_CODE, status)
            if status >= _FIRST_SERVER_ERROR:
                self.fail(span, str(status))
            span.end()

        request.end = end


def _remote(headers: TraceHeaders) -> Span:
    """The span of another service or process."""
    traceparent, tracestate = headers
    return NonRecordingSpan(
        SpanContext(
            int(traceparent[3:35], 16),
            int(traceparent[36:52], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(traceparent[53:55], 16)),
            trace_state=TraceState.from_header([tracestate]) if tracestate else None,
        )
    )


def _resource(version: str, worker: str) -> Resource:
    """The description of this process, which the environment may change."""
    own = {
        SERVICE_NAME: "crew-capture",
        SERVICE_VERSION: version,
        SERVICE_INSTANCE_ID: worker,
    }
    configured = OTELResourceDetector().detect().attributes
    return Resource.create({name: own[name] for name in own.keys() - configured.keys()})


class _Exporter(SpanExporter):
    """Sends spans in the processor's own thread. If that fails, they are dropped and counted."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._dropped = 0
        self._warned_at = -_WARNING_SECONDS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        _exporting.active = True
        try:
            result = self._exporter.export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
        finally:
            _exporting.active = False
        if result is not SpanExportResult.SUCCESS:
            self._warn(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def _warn(self, dropped: int) -> None:
        self._dropped += dropped
        now = time.monotonic()
        if now - self._warned_at >= _WARNING_SECONDS:
            logger.warning(
                "Traces could not be sent, and %d span(s) are lost: check that "
                "OTEL_EXPORTER_OTLP_ENDPOINT is reachable and accepts OTLP over HTTP",
                self._dropped,
            )
            self._dropped, self._warned_at = 0, now


_exporting = threading.local()


class _LimitWarnings(logging.Filter):
    """Drops OpenTelemetry's own lines on an export, which `_Exporter` logs.

    Of its others, such as on a full queue, it passes one a minute, without a traceback.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged_at = -_WARNING_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if getattr(_exporting, "active", False) or now - self._logged_at < _WARNING_SECONDS:
            return False
        self._logged_at = now
        record.exc_info = record.exc_text = None
        return True


_LIMIT_WARNINGS: Final = _LimitWarnings()
_LIMITED: Final = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.common.http",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)


def _limit_warnings() -> None:
    for name in _LIMITED:
        logging.getLogger(name).addFilter(_LIMIT_WARNINGS)  # once, however often it is added
