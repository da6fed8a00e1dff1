"""Descriptions of crews and flows: names, required inputs and output names."""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import cleandoc
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from app.engine.errors import CrewBroken
from app.engine.results import ExecutionMode
from app.projects import Project

if TYPE_CHECKING:  # the import of CrewAI lasts seconds
    from crewai import Crew
    from crewai.flow.flow import Flow

# CrewAI's own pattern (crewai.utilities.string_utils): only these are ever replaced.
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_\-]*)}")
_UNSAFE_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-]+")
_MAX_NAME_CHARACTERS = 80


class CrewSource(Protocol):
    """The source of a crew or flow. `build` is called in threads of its own and may block.

    Each call returns a new crew, or one that the engine copies.
    """

    @property
    def name(self) -> str: ...

    @property
    def static(self) -> bool:
        """True if two calls of `build` can't differ, as for a crew from YAML files, read once."""

    @property
    def project(self) -> Project | None:
        """The surroundings of its code, if it has any of its own."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The inputs that `build` has as parameters, with values for the build at start.

        None leaves one out.
        """

    @property
    def required(self) -> Sequence[str]:
        """The inputs that its code needs."""

    def build(self, **inputs: Any) -> "Crew | Flow[Any]": ...


@dataclass(frozen=True, slots=True)
class TaskDescription:
    """A task's output name, unique within its crew, and the role of its agent (a template).

    With `human_input`, a human reviews the output before the run continues.
    """

    name: str
    agent: str
    human_input: bool = False


@dataclass(frozen=True, slots=True)
class CrewDescription:
    """A crew or flow as it was when the engine started.

    `inputs` are the required inputs, sorted: the placeholders of a crew, and those that its code
    needs. `defaults` are a flow's inputs with their
    default values; all of them are optional. `tasks` are the tasks known before a run: of a flow
    only `result`. `reason` explains why the execution mode is not a faster one; it is empty for
    plans and flows. `fingerprint` changes with the crew's visible definition; it is empty for a
    flow, whose runs always start from the beginning. `about` is the docstring of a flow's class.
    With `allow_extra_inputs`, the state of a flow keeps inputs that it does not name.
    `state_schema` is the JSON Schema of a flow's state, if it is a model of Pydantic that has one.
    `models` are the names of the models that a crew calls; those of a flow are not known.
    """

    name: str
    inputs: tuple[str, ...]
    tasks: tuple[TaskDescription, ...]
    execution_mode: ExecutionMode
    reason: str
    fingerprint: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    state_schema: Mapping[str, Any] | None = None
    allow_extra_inputs: bool = False
    models: tuple[str, ...] = ()


def flow_docstring(flow: "Flow[Any]") -> str:
    """The first paragraph of the docstring of the flow's class; empty for a class of CrewAI."""
    made = type(flow)
    text = vars(made).get("__doc__")
    if not text or made.__module__.partition(".")[0] == "crewai":
        return ""
    return " ".join(cleandoc(text).partition("\n\n")[0].split())


def task_descriptions(crew: "Crew") -> tuple[TaskDescription, ...]:
    """Name each task: the stem of its `output_file`, else its name, else `task_N`."""
    names: list[str] = []
    for number, task in enumerate(crew.tasks, start=1):
        stem = PurePosixPath(task.output_file).stem if task.output_file else ""
        name = _plain(stem) or _plain(task.name or "") or f"task_{number}"
        names.append(unique(name, names))
    return tuple(
        TaskDescription(
            name, task.agent.role.strip() if task.agent else "manager", bool(task.human_input)
        )
        for name, task in zip(names, crew.tasks, strict=True)
    )


def required_inputs(crew: "Crew") -> tuple[str, ...]:
    """Every placeholder that CrewAI interpolates in this crew.

    CrewAI's own `fetch_inputs` also returns fragments of JSON texts, and misses output files.
    """
    return tuple(sorted({name for text in _texts(crew) for name in PLACEHOLDER.findall(text)}))


def refuse_human_input(name: str, crew: "Crew", reason: str) -> None:
    """Raise CrewBroken for a crew that would wait for input at the server's terminal."""
    for task, description in zip(crew.tasks, task_descriptions(crew), strict=True):
        if task.human_input:
            raise CrewBroken(
                f"crew {name}: task {description.name} has human_input, which is not "
                f"supported here: {reason}"
            )


def _texts(crew: "Crew") -> Iterator[str]:
    for task in crew.tasks:
        yield task.description
        yield task.expected_output
        yield task.output_file or ""
    for agent in crew.agents:
        yield agent.role
        yield agent.goal
        yield agent.backstory


def _plain(text: str) -> str:
    text = _UNSAFE_IN_NAMES.sub("_", PLACEHOLDER.sub("", text))
    return re.sub(r"_{2,}", "_", text).strip("_-")[:_MAX_NAME_CHARACTERS]


def unique(name: str, used: Container[str]) -> str:
    """The name, with a number appended if it is in use."""
    candidate, count = name, 1
    while candidate in used:
        count += 1
        candidate = f"{name}_{count}"
    return candidate
