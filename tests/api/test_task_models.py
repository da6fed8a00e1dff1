"""A run shows which models each of its tasks has called, also if another process continues it."""

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
from crewai import LLM, Agent, Crew, Process, Task
from crewai.flow.flow import Flow, start

from app.crews.registry import CrewSpec, Registry
from tests.load.stub_model import Failure, StubModel, run_stub
from tests.serving import Running, Serve

_ENGINES = ["auto", "native", "stock"]


def _crew(second_model: Any = None, **options: Any) -> Crew:
    poet = Agent(role="Poet", goal="Write", backstory="A poet")
    critic = Agent(role="Critic", goal="Judge", backstory="A critic", llm=second_model)
    poem = Task(name="poem", description="On {topic}", expected_output="A poem", agent=poet)
    title = Task(name="title", description="A title", expected_output="A title", agent=critic)
    return Crew(agents=[poet, critic], tasks=[poem, title], **options)


def _with_own_model(base_url: str) -> Crew:
    return _crew(LLM(model="openai/other", custom_openai=True, base_url=base_url, api_key="none"))


class _Flow(Flow[Any]):
    @start()
    def begin(self) -> str:
        agent = Agent(role="Thinker", goal="g", backstory="b")
        agent.kickoff("Think")  # a model call of the flow itself
        return str(_crew().kickoff(inputs={"topic": "tea"}).raw)


@pytest.fixture
async def stub() -> AsyncIterator[tuple[StubModel, str]]:
    stub = StubModel(delay_seconds=0)
    async with run_stub(stub) as base_url:
        yield stub, base_url


@pytest.mark.parametrize("engine", _ENGINES)
async def test_each_task_shows_its_model(
    serve: Serve, stub: tuple[StubModel, str], engine: str
) -> None:
    _, base_url = stub
    crews = Registry([CrewSpec("poem", lambda: _with_own_model(base_url)), CrewSpec("flow", _Flow)])
    options = {"llm_model": "openai/stub", "llm_base_url": base_url, "engine": engine}
    async with serve(crews, **options) as service:
        run, events = await _run(service, "poem")
        assert _models(run) == {"poem": ["openai/stub"], "title": ["openai/other"]}
        assert [event["models"] for event in events] == [["openai/stub"], ["openai/other"]]
        assert _calls(events) == [(1, 1), (1, 2)]
        run, events = await _run(service, "flow")
        assert _models(run) == {name: ["openai/stub"] for name in ("result", "poem", "title")}
        assert all(event["models"] == ["openai/stub"] for event in events)
        assert len(events) == 3
        assert _calls(events) == [(1, 2), (1, 3), (1, 3)]  # the flow itself calls first
        assert events[-1]["run_usage"] == run["usage"]


async def test_a_task_that_several_agents_execute_shows_all_models(
    serve: Serve, stub: tuple[StubModel, str]
) -> None:
    model, base_url = stub
    delegated: list[object] = []

    def respond(body: Any) -> Any:
        """The manager delegates its first task to the poet."""
        if body["model"] != "stub" or delegated:
            return None
        (name,) = (
            tool["function"]["name"]
            for tool in body["tools"]
            if "delegate" in tool["function"]["name"]
        )
        delegated.append(name)
        arguments = json.dumps({"coworker": "Poet", "task": "Write", "context": "none"})
        call = {
            "id": "call_1",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    model.respond = respond

    def build() -> Crew:
        crew = _with_own_model(base_url)
        manager = LLM(model="openai/stub", custom_openai=True, base_url=base_url, api_key="none")
        return Crew(
            agents=crew.agents, tasks=crew.tasks, process=Process.hierarchical, manager_llm=manager
        )

    options = {"llm_model": "openai/worker", "llm_base_url": base_url}
    async with serve(Registry([CrewSpec("poem", build)]), **options) as service:
        run, _ = await _run(service, "poem")
    assert _models(run) == {"poem": ["openai/stub", "openai/worker"], "title": ["openai/stub"]}


@pytest.mark.parametrize("engine", _ENGINES)
async def test_a_run_that_continues_under_other_settings_shows_both_models(
    serve: Serve, stub: tuple[StubModel, str], engine: str
) -> None:
    model, base_url = stub
    model.failures = {2: Failure("hang")}
    crews = Registry([CrewSpec("poem", _crew)])
    options = {"llm_base_url": base_url, "engine": engine}
    async with serve(crews, llm_model="openai/first", **options) as service:
        body = {"crew": "poem", "inputs": {"topic": "tea"}}
        path = (await service.http.post("/api/runs", json=body)).headers["location"]
        async with (
            service.http.stream("GET", f"{path}/events") as response,
        ):
            async for line in response.aiter_lines():
                if line == "event: task.finished":
                    break
        assert _models((await service.http.get(path)).json())["poem"] == ["openai/first"]
        await service.inside.stop(0)
    async with serve(crews, llm_model="openai/second", **options) as service:
        run = (await _ended(service, path)).json()
    assert _models(run) == {"poem": ["openai/first"], "title": ["openai/second"]}
    assert [task["replayed"] for task in run["tasks"]] == [True, False]


async def _run(service: Running, crew: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run at its end, and the data of its `task.finished` events."""
    inputs = {"topic": "tea"} if crew == "poem" else {}
    response = await service.http.post("/api/runs", json={"crew": crew, "inputs": inputs})
    path = response.headers["location"]
    run = (await _ended(service, path)).json()
    lines = (await service.http.get(f"{path}/events")).text.splitlines()
    return run, [
        json.loads(data.removeprefix("data: "))
        for kind, data in pairwise(lines)
        if kind == "event: task.finished"
    ]


async def _ended(service: Running, path: str) -> httpx.Response:
    await service.http.get(f"{path}/events")
    return await service.http.get(path)


def _models(run: dict[str, Any]) -> dict[str, list[str]]:
    assert run["error"] is None
    return {task["name"]: task["models"] for task in run["tasks"]}


def _calls(events: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """The numbers of calls of each finished task, and of the run until then."""
    name = "successful_requests"
    return [(event["usage"][name], event["run_usage"][name]) for event in events]
