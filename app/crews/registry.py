"""The available crews, by name."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from app.crews.idea import advisor
from app.crews.idea.profile import ASSUMED_MARK, FIELDS
from app.crews.options import CrewOptions, InputOptions, read_options
from app.crews.sources import SourceError, open_source
from app.projects import Project
from app.settings import Settings, SettingsError

if TYPE_CHECKING:
    from crewai import Crew
    from crewai.flow.flow import Flow

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class CrewSpec:
    """One crew or flow: its factory and its inputs.

    `project` are the surroundings of its code, if it has any of its own.
    `static` means that every call of `build` gives the same definition (it comes from YAML).
    `build` requires the inputs in `parameters` as arguments; with these values at start. A run
    needs the inputs in `required`.
    `inputs` are the declared inputs; texts in other inputs have at most `max_input_chars`
    characters. `offline_answer` writes the crew's reports if no model is configured. It receives
    the text of a prompt and returns the answer, or None for a prompt of another crew. `options` are
    the deployment's. With `allow_extra_inputs`, runs accept inputs that the crew's texts don't
    name, for code that reads them. `assumed_mark` follows, in prompts, each default that the client
    did not give.
    """

    name: str
    build: "Callable[..., Crew | Flow[Any]]"
    project: Project | None = None
    static: bool = False
    description: str = ""
    inputs: Mapping[str, InputOptions] = field(default_factory=dict)
    max_input_chars: int = 100_000
    offline_answer: Callable[[str], str | None] | None = None
    options: CrewOptions = field(default_factory=CrewOptions)
    assumed_mark: str = ""
    allow_extra_inputs: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)
    required: Sequence[str] = ()

    @property
    def accepts_extra_inputs(self) -> bool:
        """Whether a run accepts inputs that the crew's texts don't name."""
        chosen = self.options.allow_extra_inputs
        return self.allow_extra_inputs if chosen is None else chosen

    @property
    def defaults(self) -> dict[str, Any]:
        """The default values of empty or missing inputs."""
        return {
            name: declared.default
            for name, declared in self.inputs.items()
            if declared.default is not None
        }

    def prompt_inputs(self, inputs: dict[str, Any], assumed: Iterable[str]) -> dict[str, Any]:
        """The inputs as prompts show them, with the mark after the `assumed` ones."""
        if not self.assumed_mark:
            return inputs
        return inputs | {name: f"{inputs[name]}{self.assumed_mark}" for name in assumed}


class Registry:
    """The crews by name."""

    def __init__(self, specs: Iterable[CrewSpec]) -> None:
        self._specs = {spec.name: spec for spec in specs}

    def __iter__(self) -> Iterator[CrewSpec]:
        return iter(self._specs.values())

    def __contains__(self, name: str) -> bool:
        return name in self._specs

    def get(self, name: str) -> CrewSpec | None:
        return self._specs.get(name)


def load_crews(settings: Settings) -> Registry:
    """Every available crew: the idea crew and those of CREWS, with the options of CREWS_FILE.

    Imports the code of the crews in CREWS, and CrewAI with it. Import `app.engine` before.

    Raises:
        SettingsError: a crew can't be loaded, or CREWS_FILE is wrong; one line with the fix.
    """
    specs = [idea_crew()]
    for entry in filter(None, map(str.strip, settings.crews.split(","))):
        name, separator, where = (part.strip() for part in entry.partition("="))
        if not separator or not where:
            raise SettingsError(
                f"CREWS={entry}: must be name=package.module:factory or name=FOLDER"
            )
        if not _NAME.fullmatch(name):
            raise SettingsError(
                f"CREWS={entry}: a crew's name is made of a-z, 0-9, _ and -, at most 64 of them"
            )
        if any(spec.name == name for spec in specs):
            raise SettingsError(f"CREWS={entry}: another crew is named {name}; choose a new name")
        specs.append(_crew(name, where))
    if settings.crews_file is not None:
        options = read_options(settings.crews_file, {spec.name for spec in specs})
        specs = [_with_options(spec, options.get(spec.name, spec.options)) for spec in specs]
    return Registry(specs)


def _crew(name: str, where: str) -> CrewSpec:
    try:
        code = open_source(name, where)
    except SourceError as error:
        raise SettingsError(f"CREWS={name}={where}: {error}") from error
    return CrewSpec(
        name,
        code.build,
        project=code.project,
        static=code.static,
        description=code.description,
        inputs=code.inputs,
        parameters=code.parameters,
        required=code.required,
    )


def _with_options(spec: CrewSpec, options: CrewOptions) -> CrewSpec:
    """The crew with the deployment's options, which override the crew's own."""
    inputs = dict(spec.inputs)
    for name, declared in options.inputs.items():
        default = inputs[name].default if name in inputs else None
        if declared.default is None and default is not None and declared.allows(default):
            inputs[name] = declared.model_copy(update={"default": default})
        else:
            inputs[name] = declared
    description = options.description or spec.description
    return replace(spec, inputs=inputs, description=description, options=options)


def idea_crew() -> CrewSpec:
    """The crew that is part of the service."""

    return CrewSpec(
        "idea",
        _build_idea_crew,
        static=True,
        description="A startup-idea advisor: three reports from eight facts about a person.",
        inputs={
            field.name: InputOptions(
                type="string",
                default=field.default,
                help=field.description,
                examples=field.examples,
            )
            for field in FIELDS
        },
        max_input_chars=4000,
        offline_answer=advisor.answer,
        assumed_mark=ASSUMED_MARK,
    )


def _build_idea_crew() -> "Crew":
    from app.crews.idea.crew import build  # noqa: PLC0415 - the import of CrewAI lasts seconds

    return build()
