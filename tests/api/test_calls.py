"""The calls of a run to models and tools, behind the whole service."""

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.tools import tool
from sqlalchemy import select

from app.crews.registry import CrewSpec, Registry
from app.runs.models import RunCalls
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Running, Serve

TOPIC = "canary-of-the-user"


@tool("look up")
def look_up(text: str) -> str:
    """Look something up."""
    return f"found {text} canary-of-the-tool"


def _crew(*tools: Any) -> Crew:
    writer = Agent(role="Writer on {topic}", goal="g", backstory="b", tools=list(tools))
    critic = Agent(role="Critic of {topic}", goal="g", backstory="b")
    tasks = [
        Task(name=name, description=f"{name} on {{topic}}", expected_output="A text", agent=agent)
        for name, agent in (("facts", writer), ("draft", critic))
    ]
    return Crew(agents=[writer, critic], tasks=tasks)


class _Article(Flow[Any]):
    @start()
    def begin(self) -> str:
        Agent(role="Thinker", goal="g", backstory="b").kickoff("Think")  # a call of the flow's own
        return str(_crew().kickoff(inputs={"topic": "tea"}).raw)


CREWS = Registry(
    [
        CrewSpec("plain", _crew),
        CrewSpec("tools", lambda: _crew(look_up)),
        CrewSpec("flow", _Article),
    ]
)


def _use_tools_once(body: Any) -> Any:
    if not body.get("tools") or body["messages"][-1]["role"] != "user":
        return None
    name = body["tools"][0]["function"]["name"]
    function = {"name": name, "arguments": json.dumps({"text": "tea"})}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.fixture
async def stub() -> AsyncIterator[tuple[StubModel, str]]:
    stub = StubModel(delay_seconds=0, record=True, respond=_use_tools_once)
    async with run_stub(stub) as base_url:
        yield stub, base_url


async def _run(service: Running, crew: str, **inputs: Any) -> str:
    body = {"crew": crew, "inputs": inputs}
    response = await service.http.post("/api/runs?wait=30", json=body)
    assert response.json()["status"] == "succeeded", response.text
    path: str = response.headers["location"]
    return path


async def _calls(service: Running, path: str) -> list[dict[str, Any]]:
    response = await service.http.get(f"{path}/calls")
    assert response.status_code == 200, response.text
    page = response.json()
    assert page["next_cursor"] is None
    calls: list[dict[str, Any]] = page["calls"]
    return calls


@pytest.mark.parametrize("engine", ["auto", "native", "stock"])
async def test_calls_of_each_execution_mode(
    serve: Serve, stub: tuple[StubModel, str], engine: str
) -> None:
    model, base_url = stub
    options = {"llm_model": "openai/stub", "llm_base_url": base_url, "engine": engine}
    async with serve(CREWS, **options) as service:
        model.reset()
        plain = await _calls(service, await _run(service, "plain", topic=TOPIC))
        assert [call["task"] for call in plain] == [
            {"index": 0, "name": "facts"},
            {"index": 1, "name": "draft"},
        ]
        assert len(plain) == model.calls
        for call in plain:
            assert call["model"] == "openai/stub"
            assert call["finish_reason"] == "stop"
            assert call["tokens"]["input"] > 0
            assert call["tokens"]["output"] > 0
            assert call["started_at"] <= call["finished_at"]
            assert call["waited_seconds"] >= 0
            assert (call["tool"], call["error_type"], call["cost"]) == (None, None, None)
            assert (call["content"], call["content_omitted"]) == (None, False)

        tools = await _calls(service, await _run(service, "tools", topic=TOPIC))
        assert [call["model"] or call["tool"] for call in tools] == [
            "openai/stub",
            "look_up",
            "openai/stub",
            "openai/stub",
        ]
        assert tools[1]["task"] == {"index": 0, "name": "facts"}
        assert tools[1]["tokens"] is None

        flow = await _calls(service, await _run(service, "flow"))
        names = [call["task"]["name"] for call in flow]
        assert names == ["result", "facts", "draft"]

        async with service.inside.database.read() as connection:
            rows = list(await connection.scalars(select(RunCalls.calls)))
        assert len(rows) >= 6
        assert not any(b"canary" in row for row in rows)


@pytest.mark.parametrize("engine", ["auto", "stock"])
async def test_kept_messages_are_those_that_the_model_got(
    serve: Serve, stub: tuple[StubModel, str], engine: str
) -> None:
    model, base_url = stub
    options = {"llm_model": "openai/stub", "llm_base_url": base_url, "engine": engine}
    async with serve(CREWS, keep_messages=True, **options) as service:
        for crew in ("plain", "tools"):
            model.reset()
            calls = await _calls(service, await _run(service, crew, topic=TOPIC))
            contents = [call["content"] for call in calls if call["model"]]
            assert len(contents) == len(model.bodies)
            for content, body in zip(contents, model.bodies, strict=True):
                assert [m["content"] for m in content["messages"]] == [
                    m["content"] for m in body["messages"]
                ]
                assert content["answer"]
        [used] = [call["content"] for call in calls if call["tool"]]
        assert "canary-of-the-tool" in used["result"]
        assert used["input"]["text"] in used["result"]


async def test_unknown_runs_and_wrong_parameters_are_refused(service: Running) -> None:
    assert (await service.http.get(f"/api/runs/{uuid4()}/calls")).status_code == 404
    path = await _run(service, "idea")
    first = (await service.http.get(f"{path}/calls", params={"limit": 2})).json()
    assert [call["id"] for call in first["calls"]] == [1, 2]
    rest = await service.http.get(f"{path}/calls", params={"cursor": first["next_cursor"]})
    assert [call["id"] for call in rest.json()["calls"]] == [3]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"cursor": "abc"}, {"cursor": ""}):
        refused = await service.http.get(f"{path}/calls", params=wrong)
        assert (refused.status_code, refused.json()["error_type"]) == (400, "invalid_input")
    assert (await service.http.delete(path)).status_code == 204
    assert (await service.http.get(f"{path}/calls")).status_code == 404
