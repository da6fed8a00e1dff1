"""A crew whose runs end as their input `deed` says: well, with an error, or with their process."""

import os

from crewai import Agent, Crew, Task
from crewai.tasks.task_output import TaskOutput


def create() -> Crew:
    """The factory that CREWS names."""
    worker = Agent(role="worker", goal="to work", backstory="A worker.")
    tasks = [
        Task(
            name=name,
            description=f"{name}: {{deed}}",
            expected_output="a word",
            agent=worker,
            callback=_do,
        )
        for name in ("first", "second")
    ]
    return Crew(agents=[worker], tasks=tasks)


def _do(output: TaskOutput) -> None:
    if output.description == "first: exit":
        os._exit(7)
    if output.description == "second: fail":
        raise ValueError("it was to fail")
