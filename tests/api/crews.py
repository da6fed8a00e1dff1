"""Crews that tests of several ways in share."""

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
"""The crew of the service, and one with one input that it needs."""


class Gate:
    """An idea crew whose model answers when it is let."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.open = threading.Event()
        self.crews = Registry([replace(idea_crew(), offline_answer=self._answer)])

    def _answer(self, prompt: str) -> str:
        self.asked.set()
        assert self.open.wait(20)
        return "# A report\n\n<script>alert(1)</script> [x](javascript:alert(1)) **bold**"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


LETTER = {"recipient": "Ada", "matter": "her order is late", "language": "French"}
"""What a letter is about."""


class Letters:
    """The example crew, with a model of texts that are told apart."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.crews = Registry([CrewSpec("letter", _letter, offline_answer=self._answer)])

    def _answer(self, prompt: str) -> str:
        self.asked.append(prompt)
        return f"text {len(self.asked)}"


def _letter() -> "Crew":
    from examples.reviewed_letter import build

    return build()


@pytest.fixture
def letters() -> Letters:
    return Letters()
