"""Crews whose pages need care: hostile texts, many tasks, typed inputs, a model that waits."""

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from app.crews.options import InputOptions
from app.crews.registry import CrewSpec, Registry, idea_crew

if TYPE_CHECKING:
    from crewai import Crew

HOSTILE: Final = """# A report <script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 2"> <svg onload="window.hacked = 3"></svg>

[a script](javascript:window.hacked=4) [data](data:text/html,<script>window.hacked=5</script>)
[fine](https://example.com/) **bold** `code`

العربية نص من اليمين إلى اليسار.

""" + "\n".join(
    "| " + " | ".join(cells) + " |"
    for cells in (
        [f"column {n}" for n in range(40)],
        ["---"] * 40,
        [f"value {n}" for n in range(40)],
    )
)

LONG: Final = "# Long\n\n" + "A sentence of the long text, which has no end. " * 4300
"""A text of 200 KB."""


class Held:
    """A model that answers once it is open, and with a text of its own."""

    def __init__(self, text: str = HOSTILE) -> None:
        self.text = text
        self.open = threading.Event()
        self.open.set()

    def answer(self, prompt: str) -> str:
        assert self.open.wait(30)
        return self.text


def crews(held: Held) -> Registry:
    """The idea crew with that model, one of 60 tasks, and one with every type of input."""
    return Registry(
        [
            replace(idea_crew(), offline_answer=held.answer),
            CrewSpec("many", _many, offline_answer=held.answer),
            CrewSpec("typed", _typed, inputs=_TYPED, offline_answer=held.answer),
        ]
    )


def _many() -> "Crew":
    from crewai import Agent, Crew, Task

    worker = Agent(role="Worker", goal="Work", backstory="You work.")
    tasks = [
        Task(name=f"step_{n}", description=f"Step {n}.", expected_output="A text", agent=worker)
        for n in range(60)
    ]
    return Crew(agents=[worker], tasks=tasks)


_TYPED: Final = {
    "topic": InputOptions(type="string", help="The subject."),
    "count": InputOptions(type="integer", default=3),
    "ratio": InputOptions(type="number", default=0.5),
    "formal": InputOptions(type="boolean", default=False),
    "parts": InputOptions(type="array", default=["one"]),
}


def _typed() -> "Crew":
    from crewai import Agent, Crew, Task

    writer = Agent(role="Writer", goal="Write", backstory="You write.")
    text = Task(
        name="text",
        description="Write {count} parts {parts} about {topic}, {ratio} {formal}.",
        expected_output="A text",
        agent=writer,
    )
    return Crew(agents=[writer], tasks=[text])
