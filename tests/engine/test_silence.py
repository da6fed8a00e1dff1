"""No crew makes the process print its events, or those of other crews."""

import logging

import pytest
from crewai import Agent, Crew, Task
from crewai.events.event_listener import EventListener
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from app.engine import Engine
from app.engine.engine import EngineMode
from tests.engine.crews import INPUTS, one, react
from tests.engine.recording import RecordingLLM, Request, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def _verbose_crew(model: BaseLLM) -> Crew:
    agent = Agent(role="r", goal="g", backstory="secret", llm=model, verbose=True)
    task = Task(description="secret", expected_output="e", agent=agent)
    return Crew(agents=[agent], tasks=[task], verbose=True)


async def test_a_crew_under_construction_does_not_make_others_verbose() -> None:
    engine = Engine(model=RecordingLLM(), mode="auto", max_stock_threads=1)
    _verbose_crew(RecordingLLM())  # the engine has not seen it yet
    assert not EventListener().formatter.verbose
    await engine.aclose()


@pytest.mark.parametrize("mode", ["native", "stock"])
async def test_a_verbose_crew_inside_a_tool_prints_nothing(
    mode: EngineMode, capfd: pytest.CaptureFixture[str]
) -> None:
    results = []

    def answer(request: Request, nth: int) -> str:
        if request.role == "r":
            # CrewAI prints a warning with such an answer, whether or not an agent is verbose.
            return "Action: secret\nAction Input: {}" if nth == 0 else "Final Answer: a secret"
        return str(react("helpers")(request, nth))

    model = RecordingLLM(answer)

    @tool("helpers")
    def helpers(text: str) -> str:
        """Ask helpers."""
        results.append(_verbose_crew(model).kickoff().raw)
        return "done"

    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    try:
        await engine.start([Source("crew", lambda: one({"tools": [helpers]})(model))])
        await engine.run("crew", INPUTS)
    finally:
        await engine.aclose()
    assert results == ["a secret"]
    printed = capfd.readouterr()
    assert "secret" not in printed.out + printed.err


async def test_a_model_that_estimates_tokens_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = RecordingLLM(lambda request, _: react("helper")(request, request.turn))

    @tool("helper")
    def helper(text: str) -> str:
        """Help."""
        return "done"

    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    caplog.set_level(logging.WARNING)
    try:
        await engine.start([Source("crew", lambda: one({"tools": [helper]})(model))])
        model.model = "estimating"
        for _ in range(3):
            await engine.run("crew", INPUTS)
    finally:
        await engine.aclose()
    lines = [record for record in caplog.records if "approximate input token" in record.msg]
    assert len(lines) == 1
