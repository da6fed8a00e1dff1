"""Every execution mode equals stock CrewAI: the same messages, parameters, calls, results."""

import asyncio
import copy
import functools
from typing import Any

import pytest
from crewai import Crew
from crewai.agent.planning_config import PlanningConfig
from crewai.llms.base_llm import BaseLLM
from crewai.utilities import llm_utils

from tests.engine.crews import (
    CASES,
    INPUTS,
    Case,
    agent,
    delegates,
    fails_times,
    hierarchical,
    one,
    plans_tasks,
    react,
    ready_at,
    task,
    two,
)
from tests.engine.recording import Answer, RecordingLLM, SyncLLM, hashed, run_engine, run_reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_NAMES = [case.name for case in CASES]
_FASTER: dict[str, list[str]] = {"plan": ["auto", "native", "stock"], "native": ["auto", "stock"]}


def test_every_crew_has_a_name_of_its_own() -> None:
    assert len(set(_NAMES)) == len(_NAMES) >= 30


@pytest.mark.parametrize("case", CASES, ids=_NAMES)
async def test_a_crew_runs_as_stock_does(case: Case) -> None:
    reference = await asyncio.to_thread(run_reference, case.build, _model(case), case.inputs)
    assert (reference.error is not None) == case.fails, reference.error
    for mode in _FASTER.get(case.execution_mode, ["auto"]):
        ours = await run_engine(case.build, _model(case), case.inputs, mode)
        if case.unordered:
            for ran in (ours, reference):
                for calls in ran.calls.values():
                    calls.sort(key=lambda call: call.digest)
        assert ours.calls == reference.calls, mode
        assert ours.output == reference.output, mode
        assert ours.error == reference.error, mode
        if mode == "auto" and ours.output is not None:
            assert ours.execution_mode == (case.ends or case.execution_mode)
        if mode == "stock":
            assert ours.execution_mode == "stock"


NAMED = [
    Case(
        "a manager",
        hierarchical(manager_llm="openai/manager"),
        "native",
        answer=delegates,
    ),
    Case("a model of an agent", one({"llm": "openai/agent"})),
    Case("a model of the crew for function calls", two(crew_options={"function_calling_llm": "a"})),
    Case(
        "a planner",
        two(crew_options={"planning": True, "planning_llm": "openai/planner"}),
        "native",
        answer=plans_tasks,
    ),
    Case(
        "a model of an agent's plan",
        one({"planning_config": PlanningConfig(llm="openai/planner")}),
        "native",
        answer=ready_at(1),
    ),
    Case("models that no run calls", two(crew_options={"chat_llm": "a", "manager_llm": "b"})),
]


@pytest.mark.parametrize("case", NAMED, ids=[case.name for case in NAMED])
async def test_a_model_that_a_crew_names_is_that_of_stock(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[SyncLLM] = []

    class Named(BaseLLM):
        """CrewAI's LLM class; for each name, it gives the model of the test."""

        def __new__(cls, model: str) -> Any:
            return models[-1]

        def call(self, *args: Any, **kwargs: Any) -> str:
            raise AssertionError

    monkeypatch.setattr(llm_utils, "LLM", Named)
    models.append(_model(case))
    reference = await asyncio.to_thread(run_reference, case.build, models[-1], case.inputs)
    assert reference.error is None
    models.append(_model(case))
    ours = await run_engine(case.build, models[-1], case.inputs, "auto")
    assert (ours.calls, ours.output) == (reference.calls, reference.output)
    assert ours.execution_mode == case.execution_mode


def _side_by_side(model: BaseLLM, *, alone: bool, **options: Any) -> Crew:
    """Asynchronous tasks of one agent, or of equal agents, and one that builds on them."""
    agents = [agent(model, 1, **options) for _ in range(3)] if alone else [agent(model, 1)] * 3
    tasks = [task(agents[i], i, async_execution=True) for i in range(3)]
    last = agent(model, 2)
    return Crew(agents=[*({id(a): a for a in agents}.values()), last], tasks=[*tasks, task(last)])


@pytest.mark.parametrize("answer", [hashed, fails_times(1), react("nothing")])
async def test_tasks_of_one_agent_at_the_same_time_are_those_of_equal_agents(
    answer: Answer,
) -> None:
    shared = functools.partial(_side_by_side, alone=False)
    equal = functools.partial(_side_by_side, alone=True)
    reference = await asyncio.to_thread(run_reference, equal, RecordingLLM(answer), INPUTS)
    ours = await run_engine(shared, RecordingLLM(answer), INPUTS, "auto")
    assert (ours.calls, ours.output) == (reference.calls, reference.output)
    assert (ours.error, ours.execution_mode) == (None, "native")


def _model(case: Case) -> SyncLLM:
    return case.kind(case.answer, **copy.deepcopy(dict(case.model)))
