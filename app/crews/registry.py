"""The crews that are served, by name."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.crews.idea import advisor
from app.crews.idea.profile import DEFAULTS

if TYPE_CHECKING:
    from crewai import Crew


@dataclass(frozen=True, slots=True)
class CrewSpec:
    """One crew: how it is built, and what is known about its inputs.

    `static` says that its definition is the same at every call (it comes from YAML).
    `defaults` are the values that empty or missing inputs become.
    `offline_answer` writes the crew's reports when no model is configured: it gets the
    text of a prompt and returns the answer, or None if the prompt is not of this crew.
    """

    name: str
    build: Callable[[], "Crew"]
    static: bool = False
    defaults: Mapping[str, str] = field(default_factory=dict)
    max_input_chars: int = 4000
    offline_answer: Callable[[str], str | None] | None = None


class Registry:
    """The crews by name."""

    def __init__(self, specs: Iterable[CrewSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}

    def __iter__(self) -> Iterator[CrewSpec]:
        return iter(self._specs.values())

    def get(self, name: str) -> CrewSpec | None:
        return self._specs.get(name)


def served_crews() -> Registry:
    """Every crew that this installation serves."""
    return Registry([_idea_crew()])


def _idea_crew() -> CrewSpec:
    def build() -> "Crew":
        from app.crews.idea.crew import build  # noqa: PLC0415 - importing crewai takes seconds

        return build()

    return CrewSpec("idea", build, static=True, defaults=DEFAULTS, offline_answer=advisor.answer)
