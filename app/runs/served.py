"""A served crew as its clients see it, whichever way they come in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.crews.registry import CrewSpec
from app.engine import CrewDescription


@dataclass(frozen=True, slots=True)
class ServedCrew:
    """What can be run, with what inputs, and which outputs come of it.

    A run needs the `required` inputs; empty or missing others become their `defaults`. `tasks` are
    the names of the outputs.
    """

    name: str
    description: str
    required: tuple[str, ...]
    defaults: Mapping[str, Any]
    tasks: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs that the crew names."""
        return (*self.required, *self.defaults)


def served_crew(spec: CrewSpec, crew: CrewDescription) -> ServedCrew:
    """What clients are told of a crew."""
    tasks = ", ".join(f"{task.name} ({' '.join(task.agent.split())})" for task in crew.tasks)
    about = spec.description or f"Runs the crew {spec.name}."
    return ServedCrew(
        name=spec.name,
        description=f"{about} Tasks: {tasks}." if tasks else about,
        required=tuple(name for name in crew.inputs if name not in spec.defaults),
        defaults=spec.defaults,
        tasks=tuple(task.name for task in crew.tasks),
    )
