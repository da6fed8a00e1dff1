"""Runs free their objects at once, without Python's garbage collector."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.project import CrewBase, agent, crew, task

from app.engine import Engine
from app.engine.patches import apply
from tests.engine.recording import Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _Model(BaseLLM):
    """Answers without a record of the call, which would keep its agent."""

    def call(self, *_: Any, **__: Any) -> str:
        return "Final Answer: a report"

    async def acall(self, *_: Any, **__: Any) -> str:
        return self.call()


def _pair() -> Any:
    """A class like those of projects, which are imported after the engine's replacements."""
    apply()

    @CrewBase
    class _Pair:
        """Two agents; the second one builds on the first."""

        agents: list[Any]
        tasks: list[Any]

        @agent
        def first(self) -> Agent:
            return Agent(role="first", goal="know {topic}", backstory="long")

        @agent
        def second(self) -> Agent:
            return Agent(role="second", goal="know {topic}", backstory="long")

        @task
        def one(self) -> Task:
            return Task(
                description="about {topic}",
                expected_output="text",
                agent=self.first(),
                async_execution=True,
            )

        @task
        def two(self) -> Task:
            return Task(
                description="about {topic}",
                expected_output="text",
                agent=self.second(),
                context=[self.one()],
            )

        @crew
        def crew(self) -> Crew:
            return Crew(agents=self.agents, tasks=self.tasks)

    return _Pair


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
async def test_a_native_run_frees_its_crew() -> None:
    built: list[weakref.ref[Any]] = []
    pair = _pair()

    def build() -> Crew:
        instance = pair()
        made: Crew = instance.crew()
        built.extend(map(weakref.ref, (instance, made, *made.agents, *made.tasks)))
        return made

    engine = Engine(model=_Model(model="stub"), mode="native", max_stock_threads=2)
    await engine.start([Source("pair", build)])
    built.clear()  # those at start live as long as the engine
    for _ in range(2):
        await engine.run("pair", {"topic": "tea"})
    await engine.aclose()
    assert len(built) == 2 * 6
    # The thread that builds crews refers to the last one for a moment longer.
    for _ in range(6000):
        if not (left := [one() for one in built if one() is not None]):
            return
        left.clear()
        await asyncio.sleep(0.01)
    pytest.fail("objects of a run are left")


async def test_an_instance_that_builds_several_crews_builds_a_new_one_after_a_run() -> None:
    """A factory's own instance, first used in a run: its crew is not used again after it."""
    instances: dict[str, Any] = {}
    pair = _pair()

    def build(name: str = "") -> Crew:
        made: Crew = instances.setdefault(name, pair()).crew()
        return made

    engine = Engine(model=_Model(model="stub"), mode="native", max_stock_threads=2)
    await engine.start([Source("pair", build, parameters={"name": "at-start"})])
    for _ in range(2):
        result = await engine.run("pair", {"topic": "tea", "name": "of-a-run"})
        assert [one.agent for one in result.tasks] == ["first", "second"]
    await engine.aclose()
