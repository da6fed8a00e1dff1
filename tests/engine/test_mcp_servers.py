"""Agents with `mcps`: servers that the crew connects to."""

import asyncio
import re
import sys
from typing import Any

import pytest
from crewai import Crew
from crewai.llms.base_llm import BaseLLM
from crewai.mcp import MCPServerHTTP, MCPServerStdio

from app.engine import Engine
from tests.engine.crews import INPUTS, agent, task
from tests.engine.recording import RecordingLLM, Request, Source, hashed, run_engine, run_reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_STDIO = """
from mcp.server.fastmcp import FastMCP
server = FastMCP("words")
@server.tool()
def repeat(text: str) -> str:
    "Repeat a text."
    return f"{text} {text}"
server.run()
"""


_SERVER = MCPServerStdio(command=sys.executable, args=["-c", _STDIO])


def _repeats(request: Request, nth: int) -> Any:
    """Call the server's tool with the topic, then answer with its result."""
    if (tools := request.tools) and request.turn == 0:
        topic = re.findall(r"write about (\S+) in", str(request.messages))[0]
        call = {"name": tools[0]["function"]["name"], "arguments": f'{{"text": "{topic}"}}'}
        return [{"id": "call_0", "type": "function", "function": call}]
    return f"{hashed(request, nth)}: {request.messages[-1]['content']}"


def _crew(model: BaseLLM, mcps: list[Any]) -> Crew:
    expert = agent(model, mcps=mcps)
    return Crew(agents=[expert], tasks=[task(expert)])


def _model() -> RecordingLLM:
    return RecordingLLM(_repeats, native_tools=True)


def _with_server(model: BaseLLM) -> Crew:
    return _crew(model, [_SERVER])


async def test_a_crew_with_an_mcp_server_runs_as_stock_does() -> None:
    reference = await asyncio.to_thread(run_reference, _with_server, _model(), INPUTS)
    assert "tea tea" in str(reference.output)
    ours = await run_engine(_with_server, _model(), INPUTS, "auto")
    assert (ours.calls, ours.output) == (reference.calls, reference.output)
    assert ours.execution_mode == "native"


async def test_a_server_that_is_not_there_fails_the_run_as_in_stock() -> None:
    def build(model: BaseLLM) -> Crew:
        return _crew(model, [MCPServerHTTP(url="http://127.0.0.1:9/mcp")])

    reference = await asyncio.to_thread(run_reference, build, _model(), INPUTS)
    ours = await run_engine(build, _model(), INPUTS, "auto")
    assert ours.error == reference.error is not None


async def test_the_end_of_one_run_closes_no_connection_of_another() -> None:
    model = _model()
    engine = Engine(model=model, mode="auto", max_stock_threads=8)
    topics = ["tea", "soup"]
    try:
        await engine.start([Source("crew", lambda: _with_server(model))])
        runs = (engine.run("crew", {**INPUTS, "topic": topic}) for topic in topics)
        results = await asyncio.gather(*runs)
    finally:
        await engine.aclose()
    for topic, result in zip(topics, results, strict=True):
        assert f"{topic} {topic}" in result.raw
