"""The clients that others have, as they are published, run crews of one server."""

import ast
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from a2a.helpers import new_data_part
from a2a.types import TaskState
from crewai import Agent
from crewai.mcp import MCPServerHTTP
from crewai_tools import InvokeCrewAIAutomationTool, MCPServerAdapter
from pydantic import Field

from app.crews.registry import load_crews
from app.engine.llm import OfflineModel
from app.settings import load_settings
from tests.api.crews import REPORTS
from tests.api.test_a2a import connected as connected_by_a2a
from tests.api.test_a2a import outputs, task_of
from tests.api.test_mcp import connected as connected_by_mcp
from tests.api.test_mcp import in_a_loop_of_its_own
from tests.examples.models import secretary
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Running, Serve

Inputs = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What a client got from a run: all outputs, or the result alone where it shows no more."""

    outputs: dict[str, str] | None
    result: str


Call = Callable[[Running, str, Inputs], Awaitable[Answer]]


async def by_the_platforms_tool(service: Running, crew: str, inputs: Inputs) -> Answer:
    tool = InvokeCrewAIAutomationTool(
        crew_api_url=str(service.http.base_url.join(f"/crews/{crew}")),
        crew_bearer_token="unused while keys are off",
        crew_name=crew,
        crew_description="A served crew",
        crew_inputs={name: Field(..., description=name) for name in inputs},
    )
    result = ast.literal_eval(await asyncio.to_thread(tool.run, **inputs))
    return Answer({task["task_id"]: task["output"] for task in result["tasks"]}, result["output"])


async def by_mcp(service: Running, crew: str, inputs: Inputs) -> Answer:
    async with connected_by_mcp(service) as session:
        answer = await session.call_tool(crew, inputs)
    assert not answer.isError
    assert answer.structuredContent is not None
    return Answer(answer.structuredContent["outputs"], answer.structuredContent["raw_result"])


async def by_mcp_adapter(service: Running, crew: str, inputs: Inputs) -> Answer:
    def call() -> str:
        server = {"url": _mcp(service), "transport": "streamable-http"}
        with MCPServerAdapter(server, crew) as tools:
            return str(tools[crew].run(**inputs))

    return Answer(None, await asyncio.to_thread(call))


async def by_an_agent_with_mcps(service: Running, crew: str, inputs: Inputs) -> Answer:
    agent = Agent(role="Caller", goal="Call", backstory="Asks others", llm=OfflineModel())
    found = await asyncio.to_thread(agent.get_mcp_tools, [MCPServerHTTP(url=_mcp(service))])
    (tool,) = (tool for tool in found if tool.name.endswith(crew))
    return Answer(None, str(await in_a_loop_of_its_own(lambda: tool.run(**inputs))))


async def by_a2a(service: Running, crew: str, inputs: Inputs) -> Answer:
    async with connected_by_a2a(service, crew) as client:
        task = await task_of(client, new_data_part(dict(inputs)))
    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    given = outputs(task)
    return Answer(given, list(given.values())[-1])


def _mcp(service: Running) -> str:
    return str(service.http.base_url.join("/mcp"))


@asynccontextmanager
async def serving(serve: Serve, folder: Path) -> AsyncIterator[Running]:
    """The idea crew on the offline model, and meeting notes on a model with tools."""
    async with run_stub(StubModel(delay_seconds=0, respond=secretary)) as base_url:
        file = folder / "crews.toml"
        file.write_text(f"[notes]\nmodel = 'gpt-4o-mini'\nbase_url = '{base_url}'\n")
        settings = load_settings(crews="notes=examples.meeting_notes:build", crews_file=file)
        async with serve(load_crews(settings), crews_file=file) as service:
            yield service


CLIENTS = [by_the_platforms_tool, by_mcp, by_mcp_adapter, by_an_agent_with_mcps, by_a2a]


@pytest.mark.parametrize("call", CLIENTS)
async def test_the_idea_crew(serve: Serve, tmp_path: Path, call: Call) -> None:
    async with serving(serve, tmp_path) as service:
        answer = await call(service, "idea", {"interest_area": "Food", "work_style": "Team"})
        (run,) = await service.rows()
        assert await service.stored() == 0
    assert (run.crew, run.status) == ("idea", "succeeded")
    assert (run.inputs["interest_area"], run.inputs["work_style"]) == ("Food", "Team")
    assert answer.outputs in (None, run.outputs)
    assert list(run.outputs or {}) == REPORTS
    assert answer.result == run.raw_result
    assert "Food" in answer.result


@pytest.mark.parametrize("call", CLIENTS)
async def test_an_example_crew(serve: Serve, tmp_path: Path, call: Call) -> None:
    inputs = {"meeting_date": "2026-03-02", "notes": "Ada: offer by Thursday"}
    async with serving(serve, tmp_path) as service:
        answer = await call(service, "notes", inputs)
        (run,) = await service.rows()
        assert await service.stored() == 0
    assert (run.crew, run.status, run.inputs) == ("notes", "succeeded", inputs)
    assert answer.outputs in (None, run.outputs)
    assert answer.result == run.raw_result == "# Minutes\n\nAda sends the offer."
    item = {"what": "send the offer", "who": "Ada", "due": "2026-03-05"}
    assert json.loads((run.outputs or {})["actions"]) == {"items": [item]}
