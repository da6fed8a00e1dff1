"""A crew as a process must know it to accept runs of it: for clients, and to validate inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.budgets import Budget
from app.crews.options import InputOptions, InputType, is_of_type
from app.crews.registry import CrewSpec
from app.engine import CrewDescription, ExecutionMode, TaskDescription


@dataclass(frozen=True, slots=True)
class CrewInput:
    """An input: an empty or missing one becomes its default, or is refused if it is required.

    `type` is None where any type is allowed. Texts in it have at most `max_chars` characters.
    `examples` are values to suggest; others are allowed. An input that the deployment or the crew's
    project declares `is_declared`; a flow itself has the defaults of the others.
    """

    name: str
    type: InputType | None
    required: bool
    default: Any
    help: str
    max_chars: int
    examples: tuple[Any, ...]
    is_declared: bool = True

    def allows(self, value: object) -> bool:
        """Whether a value is of the input's type."""
        return is_of_type(self.type, value)


@dataclass(frozen=True, slots=True)
class CrewInfo:
    """A crew with its inputs and its outputs, one for each task.

    `named_inputs` are those that the crew's texts, or a flow's state, name. Texts in inputs that
    are not among `inputs` have at most `max_input_chars` characters. `budget` is that of each run,
    and `models` are the names of the models that the crew calls. `state_schema` is the JSON Schema
    of a flow's state. `reason` explains why the execution mode is not a faster one.

    `description` is `about` with a list of the tasks. Workers of one version store it, and
    accepting processes of another version read it: new fields have defaults.
    """

    name: str
    description: str
    inputs: tuple[CrewInput, ...]
    outputs: tuple[TaskDescription, ...]
    execution_mode: ExecutionMode
    allow_extra_inputs: bool
    fingerprint: str = ""
    named_inputs: tuple[str, ...] = ()
    max_input_chars: int = 100_000
    budget: Budget = field(default_factory=Budget)
    models: tuple[str, ...] = ()
    state_schema: Mapping[str, Any] | None = None
    about: str = ""
    reason: str = ""

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the inputs that a run needs."""
        return tuple(input_.name for input_ in self.inputs if input_.required)

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of empty or missing inputs."""
        return {
            input_.name: input_.default
            for input_ in self.inputs
            if input_.is_declared and input_.default is not None
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(task.name for task in self.outputs)

    @property
    def awaits_human(self) -> bool:
        """Whether its runs await reviews by a human."""
        return any(task.human_input for task in self.outputs)

    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of a run's inputs."""
        return {
            "type": "object",
            "properties": {input_.name: _schema(input_) for input_ in self.inputs},
            "required": list(self.required),
            "additionalProperties": self.allow_extra_inputs,
        }


def crew_info(spec: CrewSpec, crew: CrewDescription) -> CrewInfo:
    """The registered crew `spec`, with its description by the engine."""
    found = [*crew.inputs, *crew.defaults]
    names = [*spec.inputs, *(name for name in found if name not in spec.inputs)]
    tasks = ", ".join(f"{task.name} ({' '.join(task.agent.split())})" for task in crew.tasks)
    about = spec.description or crew.about or f"Runs the crew {spec.name}."
    return CrewInfo(
        name=spec.name,
        description=f"{about.rstrip('.')}. Tasks: {tasks}." if tasks else about,
        inputs=tuple(_input(name, spec, crew) for name in names),
        outputs=crew.tasks,
        execution_mode=crew.execution_mode,
        allow_extra_inputs=crew.allow_extra_inputs or spec.accepts_extra_inputs,
        fingerprint=crew.fingerprint,
        named_inputs=tuple(found),
        max_input_chars=spec.max_input_chars,
        budget=spec.options.budget,
        models=crew.models,
        state_schema=crew.state_schema,
        about=about,
        reason=crew.reason,
    )


def _input(name: str, spec: CrewSpec, crew: CrewDescription) -> CrewInput:
    declared = spec.inputs.get(name, InputOptions(default=crew.defaults.get(name)))
    return CrewInput(
        name=name,
        type=declared.type,
        required=name in crew.inputs and declared.default is None,
        default=declared.default,
        help=declared.help,
        max_chars=declared.max_chars or spec.max_input_chars,
        examples=declared.examples,
        is_declared=name in spec.inputs,
    )


def _schema(input_: CrewInput) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    kind = input_.type
    if kind is None and (input_.required or isinstance(input_.default, str)):
        kind = "string"  # right for every placeholder, and clients need a type
    if kind is not None:
        schema["type"] = kind
    if kind == "string":
        schema["maxLength"] = input_.max_chars
    if input_.help:
        schema["description"] = input_.help
    if input_.default is not None:
        schema["default"] = input_.default
    if input_.examples:
        schema["examples"] = list(input_.examples)
    return schema
