"""A flow behind the whole service."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, listen, start
from pydantic import BaseModel

from app.crews.registry import CrewSpec, Registry, load_crews
from app.settings import load_settings
from tests.runs.scripted import until
from tests.serving import Running, Serve


class Inputs(BaseModel):
    topic: str = "tea"
    pages: int = 1


def _crew(*names: str) -> Crew:
    writer = Agent(role="Writer on {topic}", goal="g", backstory="b")
    tasks = [
        Task(name=name, description=f"{name} on {{topic}}", expected_output="e", agent=writer)
        for name in names
    ]
    return Crew(agents=[writer], tasks=tasks)


class Gate:
    """A flow that waits between its two crews until it is let."""

    def __init__(self) -> None:
        self.open = threading.Event()
        gate = self

        class Article(Flow[Inputs]):
            @start()
            def research(self) -> str:
                return str(_crew("facts").kickoff(inputs={"topic": self.state.topic}).raw)

            @listen(research)
            def wait(self, facts: str) -> str:
                assert gate.open.wait(20)
                return facts

            @listen(wait)
            async def write(self, facts: str) -> Any:
                crew = _crew("facts", "draft")
                text = await crew.akickoff(inputs={"topic": self.state.topic})
                return {"pages": self.state.pages, "facts": facts, "text": text.raw}

        self.crews = Registry([CrewSpec("article", Article)])


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def _start(service: Running, crew: str, **inputs: Any) -> str:
    response = await service.http.post("/api/runs", json={"crew": crew, "inputs": inputs})
    assert response.status_code == 202, response.text
    run_id: str = response.json()["run_id"]
    return run_id


async def _get(service: Running, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = (await service.http.get(f"/api/runs/{run_id}")).json()
    return run


async def _settled(service: Running, run_id: str) -> dict[str, Any]:
    async def is_settled() -> bool:
        return (await _get(service, run_id))["status"] not in ("queued", "running")

    await until(is_settled, 30)
    return await _get(service, run_id)


def _states(run: dict[str, Any]) -> list[tuple[str, str]]:
    return [(task["name"], task["status"]) for task in run["tasks"]]


async def test_outputs_are_the_result_and_what_each_crew_of_the_flow_gave(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews) as service:
        run_id = await _start(service, "article", topic="coffee", pages=2)

        async def waits() -> bool:
            states = _states(await _get(service, run_id))
            return states == [("result", "running"), ("facts", "finished")]

        await until(waits)
        assert await service.stored() == 1, "an output is captured as its task finishes"
        gate.open.set()
        run = await _settled(service, run_id)
        names = ["result", "facts", "facts_2", "draft"]
        assert run["status"] == "succeeded"
        assert list(run["outputs"]) == names
        assert _states(run) == [(name, "finished") for name in names]
        assert run["tasks"][1]["agent"] == "Writer on coffee"
        for name in names[1:]:
            assert "on coffee" in run["outputs"][name]
        assert json.loads(run["outputs"]["result"]) == {
            "pages": 2,
            "facts": run["outputs"]["facts"],
            "text": run["outputs"]["draft"],
        }
        assert await service.stored() == 0

        stream = (await service.http.get(f"/api/runs/{run_id}/events")).text
        finished = [
            json.loads(block.split("data: ")[1])["name"]
            for block in stream.split("\n\n")
            if "event: task.finished" in block
        ]
        assert finished == ["facts", "facts_2", "draft", "result"]


async def test_a_flows_inputs_are_listed_with_their_defaults(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews) as service:
        crew = service.inside.runs.crew("article")
        listed = {i.name: (i.required, i.default) for i in crew.inputs}
        assert listed == {
            "topic": (False, "tea"),
            "pages": (False, 1),
            "crewai_trigger_payload": (False, None),
        }
        schema = crew.input_schema()["properties"]
        assert schema["topic"]["type"] == "string"
        assert "type" not in schema["crewai_trigger_payload"], "a payload is of any"


async def test_an_input_that_the_state_cant_hold_is_refused_at_once(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews) as service:
        for name, value in (("pages", "many"), ("id", "of another run")):
            body = {"crew": "article", "inputs": {name: value}}
            response = await service.http.post("/api/runs", json=body)
            assert response.status_code == 400
            assert name in response.json()["error"]
        assert await service.rows() == []


async def test_a_cancelled_flow_leaves_nothing(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews) as service:
        run_id = await _start(service, "article")

        async def waits() -> bool:
            return await service.stored() == 1

        await until(waits)
        await service.http.post(f"/api/runs/{run_id}/cancel")
        run = await _settled(service, run_id)
        assert run["status"] == "cancelled"
        await until(lambda: _is_empty(service))


async def _is_empty(service: Running) -> bool:
    return await service.stored() == 0


async def test_runs_of_a_flow_side_by_side_hold_only_their_own_inputs(
    serve: Serve, gate: Gate
) -> None:
    gate.open.set()
    async with serve(gate.crews) as service:
        topics = [f"topic-{number}-end" for number in range(20)]
        ids = await asyncio.gather(*(_start(service, "article", topic=t) for t in topics))
        runs = await asyncio.gather(*(_settled(service, run_id) for run_id in ids))
    for topic, run in zip(topics, runs, strict=True):
        assert run["status"] == "succeeded"
        for text in run["outputs"].values():
            assert topic in text
            assert not [other for other in topics if other != topic and other in text]


async def test_the_flow_that_crewai_creates_runs_unchanged(
    serve: Serve, flow_project: Path, tmp_path: Path
) -> None:
    crews = load_crews(load_settings(crews=f"post={flow_project}"))
    async with serve(crews) as service:
        run_id = await _start(service, "post", crewai_trigger_payload={"topic": "rain"})
        run = await _settled(service, run_id)
    assert run["status"] == "succeeded", run["error"]
    assert list(run["outputs"]) == ["result", "planning_task", "writing_task", "post"]
    state = json.loads(run["outputs"]["result"])
    assert state["topic"] == "rain"
    assert state["final_post"] == run["outputs"]["post"]
    # Its own code writes this into its project's folder, wherever the service runs.
    assert (flow_project / "output" / "post.md").read_text() == state["final_post"]
    assert not (tmp_path / "output").exists()


async def test_the_declared_flow_that_crewai_creates_runs_unchanged(
    serve: Serve, declared_flow_project: Path
) -> None:
    crews = load_crews(load_settings(crews=f"post={declared_flow_project}"))
    async with serve(crews) as service:
        run = await _settled(service, await _start(service, "post", topic="rain"))
    assert run["status"] == "succeeded", run["error"]
    assert run["outputs"] == {"result": "rain"}


async def test_a_flow_is_described_by_its_class_and_not_by_its_factory(serve: Serve) -> None:
    class Documented(Flow[Inputs]):
        """Pages about a topic.

        Of some length.
        """

        @start()
        def write(self) -> str:
            return "done"

    class Plain(Documented):
        pass

    def build() -> Flow[Any]:
        """Build the flow."""
        return Documented()

    specs = [
        CrewSpec("documented", build),
        CrewSpec("plain", Plain),
        CrewSpec("described", build, description="By the operator"),
    ]
    async with serve(Registry(specs)) as service:
        crews = (await service.http.get("/api/crews")).json()["crews"]
        cards = (await service.http.get("/a2a")).json()
    for described in crews, cards:
        texts = {crew["name"]: crew["description"] for crew in described}
        assert texts["documented"].startswith("Pages about a topic. Tasks: ")
        assert texts["plain"].startswith("Runs the crew plain. ")
        assert texts["described"].startswith("By the operator. ")
