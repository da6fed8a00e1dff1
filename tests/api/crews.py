"""Crews that the tests of several entry points share."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from app.crews.registry import CrewSpec, Registry, idea_crew

if TYPE_CHECKING:
    from crewai import Crew

REPORTS = ["profile_analysis", "startup_ideas_research", "personalized_recommendations"]


def _poem() -> "Crew":
    from crewai import Agent, Crew, Task

    poet = Agent(role="Poet", goal="Write about {topic}", backstory="You have written for years.")
    poem = Task(
        name="poem", description="Write a poem about {topic}.", expected_output="A poem", agent=poet
    )
    title = Task(
        name="title",
        description="Find a title for the poem about {topic}.",
        expected_output="A title",
        agent=poet,
        context=[poem],
    )
    return Crew(agents=[poet], tasks=[poem, title])


IDEA_AND_POEM = Registry([idea_crew(), CrewSpec("poem", _poem)])
"""The default crew, and one with one required input."""

EXTRA_INPUTS = Registry(replace(spec, allow_extra_inputs=True) for spec in IDEA_AND_POEM)
"""The same crews, which accept inputs that their texts do not name."""


class Gate:
    """An idea crew whose model answers once the gate is open."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.open = threading.Event()
        self.crews = Registry([replace(idea_crew(), offline_answer=self._answer)])

    def _answer(self, prompt: str) -> str:
        self.called.set()
        assert self.open.wait(20)
        return "# A report\n\n<script>alert(1)</script> [x](javascript:alert(1)) **bold**"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


LETTER = {"recipient": "Ada", "matter": "her order is late", "language": "French"}
"""The inputs of a letter."""


class Letters:
    """The example crew, with a model whose texts are distinct."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.crews = Registry([CrewSpec("letter", _letter, offline_answer=self._answer)])

    def _answer(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return f"text {len(self.prompts)}"


def _letter() -> "Crew":
    from examples.reviewed_letter import build

    return build()


@pytest.fixture
def letters() -> Letters:
    return Letters()
