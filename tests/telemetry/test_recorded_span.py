"""The spans of this service are those that OpenTelemetry's SDK would make."""

import json
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
)

from app.telemetry.recorded_span import RecordedSpan, SpanTarget
from app.telemetry.sdk import Tracing

_CONTEXT = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
_OTHER = SpanContext(3, 4, is_remote=True)
_SCOPE = InstrumentationScope("crew-capture", "1")


class _Sent(SpanProcessor):
    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def _ours(sent: _Sent) -> RecordedSpan:
    span = RecordedSpan(
        SpanTarget(Resource({}), _SCOPE, sent),
        "chat model",
        _CONTEXT,
        None,
        SpanKind.CLIENT,
        {"begun": "with"},
        (),
        5,
    )
    span.is_shared = True
    return span


def _theirs(sent: _Sent) -> Span:
    provider = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    provider.add_span_processor(sent)
    return provider.get_tracer("crew-capture", "1").start_span(
        "chat model", Context(), SpanKind.CLIENT, {"begun": "with"}, (), 5
    )


def _use(span: Span) -> None:
    """Everything that the code of a tool can do to its span."""
    assert span.is_recording()
    span.set_attribute("text", "a long text")
    values: dict[str, Any] = {"begun": 1, "list": ["a", "b"], "none": None, "object": object}
    span.set_attributes(values)
    span.set_attribute("", "no name")
    span.add_event("seen", {"by": "a tool"}, 6)
    span.add_link(_OTHER, {"why": "because"})
    span.record_exception(ValueError("of Python"), {"more": 1}, timestamp=7)
    span.record_exception(json.JSONDecodeError("of a module", "", 0), timestamp=8, escaped=True)
    span.set_status(StatusCode.ERROR, "a description")
    span.update_name("chat")
    span.end(9)
    span.end(10)
    span.set_attribute("text", "late")
    span.set_attributes({"text": "late"})
    span.add_event("late")
    span.add_link(_OTHER)
    span.update_name("late")
    span.set_status(StatusCode.OK)
    assert not span.is_recording()


@pytest.mark.parametrize("limits", [{}, {"OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "4"}])
def test_code_of_a_tool_changes_a_span_as_in_the_sdk(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, str]
) -> None:
    for name, value in limits.items():
        monkeypatch.setenv(name, value)
    shown = []
    for make in (_ours, _theirs):
        sent = _Sent()
        _use(make(sent))
        (span,) = sent.spans
        fields = json.loads(span.to_json())
        del fields["context"]
        shown.append(fields)
    assert shown[0] == shown[1]
    assert len(shown[0]["events"]) == 3


def test_the_limits_of_the_environment_hold_for_our_own_attributes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    sent = _Sent()
    target = SpanTarget(Resource({}), _SCOPE, sent)
    own = {"text": "abcdef"}
    RecordedSpan(target, "x", _CONTEXT, None, SpanKind.INTERNAL, own, (), None).end()
    assert SpanLimits().max_span_attribute_length == 3
    assert dict(sent.spans[0].attributes or {}) == {"text": "abc"}


class _DropsSteps(Sampler):
    def __init__(self) -> None:
        self.names: list[str] = []

    def should_sample(self, parent_context: Any, trace_id: int, name: str, *_: Any) -> Any:
        self.names.append(name)
        is_step = name == "store output"
        return SamplingResult(Decision.DROP if is_step else Decision.RECORD_AND_SAMPLE)

    def get_description(self) -> str:
        return "drops steps"


@pytest.fixture
def make_tracing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sampler, str], Tracing]:
    def make(sampler: Sampler, name: str) -> Tracing:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", name)
        monkeypatch.setattr(
            "app.telemetry.sdk.TracerProvider", lambda **_: SimpleNamespace(sampler=sampler)
        )
        monkeypatch.setattr("app.telemetry.sdk.BatchSpanProcessor", lambda _: _Sent())
        return Tracing("1", "worker")

    return make


@pytest.mark.parametrize(
    ("name", "names"),
    [("of-a-package", ["run", "store output"]), ("parentbased_always_on", ["run"])],
)
def test_only_samplers_of_other_packages_decide_within_a_run(
    make_tracing: Callable[[Sampler, str], Tracing], name: str, names: Sequence[str]
) -> None:
    sampler = _DropsSteps()
    tracing = make_tracing(sampler, name)
    run = tracing.start("run", None, {})
    step = tracing.start("store output", run, {})
    assert sampler.names == names
    assert isinstance(step, NonRecordingSpan) == (len(names) == 2)
    assert step.get_span_context().trace_id == run.get_span_context().trace_id
    assert step.get_span_context().trace_flags.sampled == (len(names) == 1)


def test_threads_begin_spans_with_ids_of_their_own(
    make_tracing: Callable[[Sampler, str], Tracing],
) -> None:
    tracing = make_tracing(_DropsSteps(), "always_on")
    run = tracing.start("run", None, {}, ids=(7, 8))
    spans: list[Span] = []
    threads = [
        threading.Thread(target=lambda: spans.append(tracing.start("task", run, {})))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contexts = [span.get_span_context() for span in spans]
    assert {one.trace_id for one in contexts} == {7}
    assert len({one.span_id for one in contexts} - {8}) == 8
