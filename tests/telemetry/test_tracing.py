"""Whether traces are made, the contexts of clients, and the table of names."""

import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from app.telemetry.content import answer, prompt, to_json
from app.telemetry.tracing import (
    EventName,
    Key,
    SpanName,
    TraceHeaders,
    attempt_headers,
    attempt_span_id,
    current_trace_id,
    is_configured,
    open_tracing,
    set_trace_id,
    trace_headers,
)

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
_DOCS = Path(__file__).parents[2] / "docs" / "tracing.md"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**_ENDPOINT, "OTEL_SDK_DISABLED": "true"},
        {**_ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_on"},
    ],
)
def test_without_an_endpoint_nothing_is_made(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not is_configured()
    assert open_tracing("1", "worker") is None


def test_the_modules_of_a_run_import_no_opentelemetry() -> None:
    code = (
        "import sys, app.runs.execution.traces, app.api.middleware.request_traces\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (_PARENT, _PARENT),
        (f" {_PARENT} ", _PARENT),
        (f"cc{_PARENT[2:]}-more", _PARENT),
        (f"{_PARENT}-more", None),
        (f"ff{_PARENT[2:]}", None),
        (_PARENT.upper(), None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01", None),
        (None, None),
        (1, None),
        (_PARENT + " " * 1000, None),
    ],
)
def test_a_context_is_accepted_as_the_standard_has_it(given: object, expected: str | None) -> None:
    found = trace_headers(given)
    assert found == (None if expected is None else TraceHeaders(expected))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a=1,b@c=x y", "a=1,b@c=x y"),
        ("a=1, b=2", "a=1, b=2"),
        ("A=1", None),
        ("a", None),
        ("a=" + "x" * 600, None),
        ("a=\u00e4", None),
    ],
)
def test_a_tracestate_that_is_not_well_formed_is_ignored(given: str, expected: str | None) -> None:
    assert trace_headers(_PARENT, given) == TraceHeaders(_PARENT, expected)


def test_each_attempt_has_an_id_of_its_own_which_its_row_gives() -> None:
    run, now = uuid4(), datetime.now(UTC)
    ids = {attempt_span_id(run, now + timedelta(microseconds=n)) for n in range(100)}
    assert len(ids) == 100
    assert all(0 < one < 2**64 for one in ids)
    headers = attempt_headers(run, now, _PARENT, "a=b")
    span_id = f"{attempt_span_id(run, now):016x}"
    assert headers == {
        "traceparent": f"{_PARENT[:36]}{span_id}-01",
        "tracestate": "a=b",
    }
    assert attempt_headers(run, None, _PARENT, None) == {"traceparent": _PARENT}
    assert attempt_headers(run, now, None, None) == {}


def test_the_trace_id_is_known_to_the_log() -> None:
    set_trace_id(TraceHeaders(_PARENT))
    assert current_trace_id() == _PARENT[3:35]


def test_content_of_any_kind_becomes_json() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert to_json({"a": "\ud800"}) == '{"a": "?"}'
    assert to_json([Odd()]) == '"list"'
    assert prompt(None).messages == "[]"
    assert prompt([Odd(), {"role": "user", "content": [{"type": "text", "text": "x"}]}][1:]) == (
        None,
        '[{"role": "user", "parts": [{"type": "text", "content": "x"}]}]',
    )
    assert '"arguments": "{"' in answer([{"function": {"name": "f", "arguments": "{"}}], None)


def _constants(table: type) -> set[str]:
    return {value for name, value in vars(table).items() if not name.startswith("_")}


def test_the_guide_has_every_span_and_attribute() -> None:
    text = _DOCS.read_text()
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", text, re.MULTILINE))
    assert documented == _constants(Key) | _constants(EventName)
    for name in _constants(SpanName) - {SpanName.REQUEST}:
        assert f"| `{name.partition(' {')[0]}" in text
