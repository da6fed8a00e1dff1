"""A run is one trace, of the same shape in each execution mode, without the texts of its users."""

import json
from typing import Any

import pytest

from app.telemetry.tracing import EventName, Key
from tests.load.stub_model import Failure
from tests.runs.scripted import until
from tests.telemetry.conftest import MakeTraced, Traced
from tests.telemetry.crews import ANSWER, MODEL, SECRET
from tests.telemetry.otlp import Collector, Span, Trace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = PARENT[3:35]


def _task(number: int, *calls: Any) -> Any:
    inside = calls or ((MODEL, []),)
    return (f"invoke_agent Expert {number} for {{topic}}", sorted([*inside, ("store output", [])]))


def _shape(crew: str, *tasks: Any) -> Any:
    around: list[Any] = [("settle run", []), ("wait for slot", [])]
    return ("POST /api/runs", [(f"invoke_workflow {crew}", sorted([*tasks, *around]))])


def _has_no_content(collector: Collector) -> None:
    assert collector.bodies
    for body in collector.bodies:
        for mark in (SECRET, ANSWER):
            assert mark.encode() not in body


@pytest.mark.parametrize("engine", ["auto", "native", "stock"])
async def test_the_trace_of_a_run_has_one_shape(traced: MakeTraced, engine: str) -> None:
    async with traced(engine=engine) as service:
        run = await service.trace_of("three", headers={"traceparent": PARENT, "tracestate": "a=b"})
        request = run.one("POST /api/runs")
        assert (request.trace_id, request.parent_id) == (TRACE_ID, PARENT[36:52])
        assert (request.kind, request.tracestate) == ("SERVER", "a=b")
        assert request.resource["service.name"] == "crew-capture"
        assert request.attributes == {
            Key.METHOD: "POST",
            Key.ROUTE: "/api/runs",
            Key.PROTOCOL: "rest",
            Key.STATUS_CODE: 200,
        }
        assert run.shape() == _shape("three", _task(1), _task(2), _task(3))
        run.check_times()
        _check_three(run, "plan" if engine == "auto" else engine, service)

        tool = await service.trace_of("tool")
        calls: list[Any] = [(MODEL, []), ("execute_tool lookup", []), (MODEL, [])]
        assert tool.shape() == _shape("tool", _task(1, *calls))
        tool.check_times()
        span = tool.one("execute_tool lookup")
        assert span.attributes == {
            Key.OPERATION: "execute_tool",
            Key.TOOL: "lookup",
            Key.TOOL_TYPE: "function",
        }
        (inside,) = {
            message["content"]
            for message in service.stub.bodies[-1]["messages"]
            if message["role"] == "tool"
        }
        assert inside == f"{span.trace_id} {span.id}", "the author's own spans are elsewhere"

        delegating = await service.trace_of("delegating")
        calls[1] = ("execute_tool delegate_work_to_coworker", [(MODEL, [])])
        assert delegating.shape() == _shape("delegating", _task(1, *calls))
        delegating.check_times()
        _has_no_content(service.collector)

        guarded = await service.trace_of("guarded")
        assert guarded.shape() == _shape("guarded", _task(1, (MODEL, []), (MODEL, [])))
        task = guarded.one("invoke_agent Expert 1 for {topic}")
        assert task.events == [
            (EventName.GUARDRAIL, {Key.GUARDRAIL_PASSED: False, Key.GUARDRAIL_RETRIES: 0}),
            (EventName.GUARDRAIL, {Key.GUARDRAIL_PASSED: True, Key.GUARDRAIL_RETRIES: 1}),
        ]
        assert not any(span.error for span in [*run.spans, *tool.spans, *guarded.spans])
        _has_no_content(service.collector)


def _check_three(run: Trace, mode: str, service: Traced) -> None:
    """Fail unless the spans of the crew `three` have their names, kinds and attributes."""
    workflow = run.one("invoke_workflow three")
    assert workflow.attributes[Key.RUN_ID]
    assert {k: v for k, v in workflow.attributes.items() if k != Key.RUN_ID} == {
        Key.OPERATION: "invoke_workflow",
        Key.AGENT: "three",
        Key.ATTEMPT: 1,
        Key.RUN_STATUS: "succeeded",
        Key.EXECUTION_MODE: mode,
    }
    tasks = [run.one(f"invoke_agent Expert {number} for {{topic}}") for number in (1, 2, 3)]
    assert [task.attributes for task in tasks] == [
        {
            Key.OPERATION: "invoke_agent",
            Key.AGENT: f"Expert {number} for {{topic}}",
            Key.TASK: name,
        }
        for number, name in enumerate(("one", "two", "three"), start=1)
    ]
    assert tasks[1].started_at < tasks[0].ended_at, "parallel tasks are siblings"
    for call in run.all(MODEL):
        assert call.kind == "CLIENT"
        tokens = (call.attributes[Key.INPUT_TOKENS], call.attributes[Key.OUTPUT_TOKENS])
        assert tokens[0] > 0
        assert tokens[1] == 2
        assert call.attributes[Key.PROVIDER] == "openai"
        assert call.attributes[Key.MODEL] == "stub"
        assert call.attributes[Key.FINISH_REASONS] == ["stop"]
        assert call.attributes[Key.RETRIES] == 0
        assert call.attributes[Key.WAITED] >= 0
    sent = {headers["traceparent"] for headers in service.stub.headers}
    assert sent >= {f"00-{c.trace_id}-{c.id}-01" for c in run.all(MODEL)}
    assert {headers.get("tracestate") for headers in service.stub.headers} == {"a=b"}


async def test_the_trace_of_a_flow_has_its_crews_tasks(traced: MakeTraced) -> None:
    async with traced() as service:
        run = await service.trace_of("flow")
        assert run.shape() == _shape(
            "flow", _task(1), _task(2), _task(3), ("invoke_agent Three", [("store output", [])])
        )
        run.check_times()
        assert run.one("invoke_workflow flow").attributes[Key.EXECUTION_MODE] == "flow"
        _has_no_content(service.collector)


async def test_a_failed_model_shows_its_retries_and_the_type_of_its_error(
    traced: MakeTraced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.llm.pool.backoff_seconds", lambda *_: 0.0)
    async with traced() as service:
        secret = Failure(status=400, body=json.dumps({"error": {"message": SECRET}}))
        service.stub.failures = {1: Failure(status=503), **dict.fromkeys(range(2, 40), secret)}
        ended = await service.run("guarded")
        assert ended["status"] == "failed"
        trace = await service.collector.until("POST /api/runs")
        trace.check_times()
        calls = trace.all(MODEL)
        assert calls[0].attributes[Key.RETRIES] == 1
        names = {span.name for span in trace.spans if span.error}
        task = "invoke_agent Expert 1 for {topic}"
        assert names == {"invoke_workflow guarded", task, MODEL}
        assert {call.attributes[Key.ERROR_TYPE] for call in calls} == {"BadRequestError"}
        run = trace.one("invoke_workflow guarded")
        assert run.attributes[Key.ERROR_TYPE] == trace.one(task).attributes[Key.ERROR_TYPE]
        assert run.attributes[Key.ERROR_TYPE] == "model_error"
        assert run.attributes[Key.RUN_STATUS] == "failed"
        assert not any(span.description for span in trace.spans)
        _has_no_content(service.collector)


@pytest.mark.parametrize("engine", ["auto", "stock"])
async def test_a_cancelled_run_ends_all_its_spans(traced: MakeTraced, engine: str) -> None:
    async with traced(engine=engine) as service:
        service.stub.failures = {1: Failure("hang"), 2: Failure("hang")}
        body = {"crew": "three", "inputs": {"topic": SECRET}}
        answer = await service.http.post("/api/runs", json=body)

        async def two_calls() -> bool:
            return service.stub.calls == 2

        await until(two_calls)
        await service.http.post(f"/api/runs/{answer.json()['run_id']}/cancel")
        trace = await service.collector.until("invoke_workflow three")
        tasks = [(f"invoke_agent Expert {n} for {{topic}}", [(MODEL, list[Any]())]) for n in (1, 2)]
        around: list[Any] = [("settle run", []), ("wait for slot", [])]
        run = trace.one("invoke_workflow three")
        assert trace.shape(run) == ("invoke_workflow three", sorted([*tasks, *around]))
        trace.check_times()
        assert run.attributes[Key.ERROR_TYPE] == run.attributes[Key.RUN_STATUS] == "cancelled"
        assert {span.error for span in trace.spans if "invoke_agent" in span.name} == {True}


async def test_a_streamed_call_has_the_time_to_its_first_chunk(traced: MakeTraced) -> None:
    async with traced() as service:
        body = {"crew": "three", "inputs": {"topic": SECRET}, "stream": True}
        answer = await service.http.post("/api/runs?wait=60", json=body)
        assert answer.status_code == 200
        trace = await service.collector.until("POST /api/runs")
        for call in trace.all(MODEL):
            seconds = call.attributes[Key.TIME_TO_FIRST_CHUNK]
            assert 0 < seconds <= (call.ended_at - call.started_at) / 1e9


@pytest.mark.parametrize("engine", ["auto", "native", "stock"])
async def test_content_is_what_the_model_was_sent(traced: MakeTraced, engine: str) -> None:
    switch = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}
    async with traced(switch, engine=engine) as service:
        for crew in ("three", "tool"):
            service.stub.reset()
            trace = await service.trace_of(crew)
            shown = sorted(map(_request_of, trace.all(MODEL)), key=str)
            assert shown == sorted(map(_as_shown, service.stub.bodies), key=str)
        first, last = trace.all(MODEL)
        (first_answer,) = json.loads(first.attributes[Key.OUTPUT])
        assert first_answer["parts"] == [
            {"type": "tool_call", "id": "call_1", "name": "lookup", "arguments": {}}
        ]
        (answered,) = json.loads(last.attributes[Key.OUTPUT])
        assert answered["role"] == "assistant"
        assert answered["finish_reason"] == "stop"
        assert answered["parts"][0]["content"].startswith(ANSWER)
        (definition,) = json.loads(first.attributes[Key.TOOLS])
        assert definition["function"]["name"] == "lookup"
        tool = trace.one("execute_tool lookup")
        assert json.loads(tool.attributes[Key.TOOL_ARGUMENTS]) == {}
        assert json.loads(tool.attributes[Key.TOOL_RESULT]) == f"{tool.trace_id} {tool.id}"


def _request_of(call: Span) -> list[Any]:
    """All messages of a call, as its span shows them."""
    system = json.loads(call.attributes.get(Key.SYSTEM, "[]"))
    messages = [{"role": "system", "parts": system}] if system else []
    return [*messages, *json.loads(call.attributes[Key.INPUT])]


def _as_shown(body: dict[str, Any]) -> list[Any]:
    """The messages that the model's server got, in the form of the conventions."""
    return [{"role": message["role"], "parts": _parts(message)} for message in body["messages"]]


def _parts(message: dict[str, Any]) -> list[Any]:
    if message["role"] == "tool":
        answered = {"type": "tool_call_response", "id": message["tool_call_id"]}
        return [{**answered, "response": message["content"]}]
    text = message.get("content")
    return ([{"type": "text", "content": text}] if text else []) + [
        {
            "type": "tool_call",
            "id": call["id"],
            "name": call["function"]["name"],
            "arguments": json.loads(call["function"]["arguments"]),
        }
        for call in message.get("tool_calls") or ()
    ]


async def test_a_run_that_is_not_sampled_keeps_that_decision(traced: MakeTraced) -> None:
    async with traced() as service:
        unsampled = PARENT[:-2] + "00"
        for crew in ("three", "tool", "flow"):
            await service.run(crew, headers={"traceparent": unsampled})
        sent = [headers["traceparent"] for headers in service.stub.headers]
        assert {(header[3:35], header[-2:]) for header in sent} == {(TRACE_ID, "00")}
        assert len(set(sent)) == 3, "each run has a context of its own"
        await service.trace_of("three")  # later spans than any of those before
        assert {span.trace_id for span in service.collector.spans}.isdisjoint({TRACE_ID})
        rows = await service.service.rows()
        stored = str(rows[0].traceparent)
        assert (stored[3:35], stored[-2:]) == (TRACE_ID, "00")


async def test_the_ratio_of_the_environment_samples_runs(traced: MakeTraced) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}
    async with traced(sampler) as service:
        await service.run("three")
        await service.run("three", headers={"traceparent": PARENT})
        trace = await service.collector.until("POST /api/runs")
        assert trace.roots()[0].trace_id == TRACE_ID


async def test_every_door_accepts_a_context(traced: MakeTraced) -> None:
    headers, body = {"traceparent": PARENT}, {"inputs": {"topic": SECRET}}
    message = {
        "messageId": "1",
        "role": "ROLE_USER",
        "parts": [{"data": {"topic": SECRET}}],
    }
    rpc = {"jsonrpc": "2.0", "id": 1}
    agent = {**rpc, "method": "SendMessage", "params": {"message": message}}
    async with traced() as service:
        for path, sent, more in (
            ("/api/runs", {"crew": "three", **body}, {}),
            ("/api/runs/batch", {"crew": "three", "inputs": [body["inputs"]] * 2}, {}),
            ("/crews/three/kickoff", body, {}),
            ("/a2a/three", agent, {"A2A-Version": "1.0"}),
        ):
            answer = await service.http.post(path, json=sent, headers=headers | more)
            assert answer.status_code < 300, answer.text
        # Of a tool's call, its own context precedes that of the HTTP request.
        other = "00-" + "1" * 32 + PARENT[35:]
        accept = {"Accept": "application/json, text/event-stream"}
        for meta, header in (({"traceparent": PARENT}, other), ({}, PARENT)):
            call = {"name": "three", "arguments": body["inputs"], "_meta": meta}
            answer = await service.http.post(
                "/mcp",
                json={**rpc, "method": "tools/call", "params": call},
                headers={**accept, "traceparent": header},
            )
            assert "canary-of-a-model" in answer.text
        trace = await service.collector.until("invoke_workflow three", 7)
        trace = await service.collector.until("POST /mcp", 2)
        runs = {trace.parent(run).name: 0 for run in trace.all("invoke_workflow three")}
        for run in trace.all("invoke_workflow three"):
            runs[trace.parent(run).name] += 1
        assert runs == {
            "POST /api/runs": 1,
            "POST /api/runs/batch": 2,
            "POST /crews/{crew}/kickoff": 1,
            "POST /a2a/{crew}": 1,
            "POST /mcp": 2,
        }
        requests = [span for span in trace.spans if span.kind == "SERVER"]
        assert {span.parent_id for span in requests} == {PARENT[36:52]}
        protocols = {span.attributes[Key.PROTOCOL] for span in requests}
        assert protocols == {"rest", "amp", "a2a", "mcp"}
        _has_no_content(service.collector)


@pytest.mark.parametrize(
    "given", ["", "00-0-0-00", PARENT[:-2] + "zz", "ff" + PARENT[2:], "0" * 55]
)
async def test_a_wrong_context_begins_a_trace(traced: MakeTraced, given: str) -> None:
    async with traced() as service:
        trace = await service.trace_of("three", headers={"traceparent": given, "tracestate": "%"})
        (root,) = trace.roots()
        assert (root.name, root.parent_id, root.tracestate) == ("POST /api/runs", "", "")
