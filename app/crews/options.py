"""The options of a deployment's crews: the file that CREWS_FILE names."""

import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from app.budgets import Budget, budget
from app.sentences import uncapitalized
from app.settings import SettingsError

InputType = Literal["string", "integer", "number", "boolean", "array", "object"]

_PYTHON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def is_of_type(type_: InputType | None, value: object) -> bool:
    """Whether a value is of a type; None allows any."""
    if type_ is None:
        return True
    if isinstance(value, bool):  # a number in Python
        return type_ == "boolean"
    return isinstance(value, _PYTHON_TYPES[type_])


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputOptions(_Table):
    """The declaration of an input. None as `type` allows any type; `max_chars` limits each text.

    `examples` are values that clients may suggest; others are allowed. An empty or missing input
    gets its `default`. Without one, it is required if the crew names it.
    """

    type: InputType | None = None
    default: Any = None
    help: str = ""
    max_chars: Annotated[int, Field(ge=1)] | None = None
    examples: tuple[Any, ...] = ()

    def allows(self, value: object) -> bool:
        """Whether a value is of the declared type."""
        return is_of_type(self.type, value)

    @model_validator(mode="after")
    def _default_of_its_type(self) -> Self:
        if self.default is not None and not self.allows(self.default):
            raise ValueError(f"default: {self.default!r} is no {self.type}")
        return self


class CrewOptions(_Table):
    """One crew's table in the file.

    `model`, `base_url`, `api_key_env` (an environment variable) and `temperature` apply to agents
    without a model of their own; with `replace_models`, to all agents. `max_runs_in_flight` counts
    over all processes. The limits apply within those of the service. `allow_extra_inputs` is for
    crews that read inputs which their texts don't name; None leaves the choice to the crew.
    `memory` overrides the setting MEMORY. `mcp_headers` are headers for MCP servers of the crew's
    agents, by the server's URL. A `{NAME}` in a value is the secret NAME of the run. `max_cost`
    (USD), `max_model_calls` and `max_tokens` are the budget of each run.
    """

    description: str = ""
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    replace_models: bool = False
    max_runs_in_flight: Annotated[int, Field(ge=1)] | None = None
    run_timeout_seconds: Annotated[float, Field(gt=0)] | None = None
    allow_extra_inputs: bool | None = None
    memory: Literal["caller", "run", "crew"] | None = None
    mcp_headers: dict[str, dict[str, str]] = {}
    max_cost: Annotated[float, Field(gt=0, le=1e9)] | None = None
    max_model_calls: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    inputs: dict[str, InputOptions] = {}

    @field_validator("api_key_env")
    @classmethod
    def _is_set(cls, value: str | None) -> str | None:
        if value is not None and not os.environ.get(value):
            raise ValueError(f"the environment has no variable {value}")
        return value

    @property
    def budget(self) -> Budget:
        """The budget of each run of the crew."""
        return budget(self.max_cost, self.max_model_calls, self.max_tokens)

    @property
    def has_model(self) -> bool:
        """Whether the crew has a model other than the deployment's."""
        return (self.model, self.base_url, self.api_key_env, self.temperature) != (None,) * 4


_FILE: TypeAdapter[dict[str, CrewOptions]] = TypeAdapter(dict[str, CrewOptions])


def read_options(file: Path, names: Collection[str]) -> Mapping[str, CrewOptions]:
    """The options of each crew that has a table in the file. `names` are the available crews.

    Raises:
        SettingsError: the file can't be read or is wrong; one line with the file, the crew and the
            field.
    """
    where = f"CREWS_FILE={file}"
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
        options = _FILE.validate_python(tables)
    except OSError as error:
        raise SettingsError(f"{where}: can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where}: is no TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{where}: {_problem(error)}") from None
    for name in options:
        if name not in names:
            crews = ", ".join(sorted(names))
            raise SettingsError(f"{where}: [{name}]: there is no such crew; available are {crews}")
    return options


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    crew, *path = map(str, first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "there is no such field"
    field = f" {'.'.join(path)}:" if path else ""
    return f"[{crew}]{field} {uncapitalized(message)}"
