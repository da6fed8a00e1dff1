"""The parameters of the code that builds a crew, as inputs of its runs."""

import builtins
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.crews.options import InputOptions, InputType
from app.projects.secrets import is_secret

_TYPES: Final[Mapping[type, InputType]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
}
_SAMPLES: Final[Mapping[InputType | None, Any]] = {
    "integer": 1,
    "number": 1.0,
    "boolean": False,
    "array": [],
    "object": {},
}


class ParameterError(Exception):
    """A required parameter that no input can hold: one line."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that a run's input sets. `declared` has its default, if an input can hold it."""

    name: str
    required: bool
    declared: InputOptions

    @property
    def sample(self) -> Any:
        """A value for the build at start: for a text, the placeholder of the input."""
        return _SAMPLES.get(self.declared.type, f"{{{self.name}}}")


def parameters_of(function: Callable[..., Any], *, skip: int = 0) -> tuple[Parameter, ...]:
    """The parameters of a function or class that inputs can set, without the first `skip`.

    Raises:
        ParameterError: a required one can't be an input.
    """
    if inspect.isclass(function):
        if (constructor := function.__init__) is object.__init__:
            return ()
        function, skip = constructor, skip + 1
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable without a signature
        return ()
    found = []
    for parameter in list(signature.parameters.values())[skip:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        made = _parameter(parameter)
        if made is None and parameter.default is parameter.empty:
            raise ParameterError(
                f"its parameter {parameter.name} can't be an input, which is a text, a number, a "
                "list or an object; give it a default"
            )
        if made is not None and parameter.kind is not parameter.POSITIONAL_ONLY:
            found.append(made)
    return tuple(found)


def _parameter(parameter: inspect.Parameter) -> Parameter | None:
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    kind = _type_of(parameter.annotation)
    if kind is _OBJECT:
        return None
    if default is not None and type(default) not in _TYPES:
        return None
    if kind is None and default is not None:
        kind = _TYPES[type(default)]
    declared = InputOptions(type=kind)
    if default is not None and declared.allows(default) and not is_secret(parameter.name, default):
        declared = InputOptions(type=kind, default=default)
    return Parameter(parameter.name, required, declared)


_OBJECT: Final[Any] = object()


def _type_of(annotation: Any) -> Any:
    """The type of an input; None for any type, `_OBJECT` for a type that no input has."""
    if annotation in (inspect.Parameter.empty, Any):
        return None
    if isinstance(annotation, str):
        name = annotation.strip("'\"").split("|")[0].strip()
        name = name.removeprefix("Optional[").removeprefix("typing.").split("[")[0].rstrip("]")
        if name == "Any":
            return None
        named = getattr(builtins, name.lower() if name in ("List", "Dict") else name, None)
        return _TYPES.get(named, _OBJECT) if isinstance(named, type) else _OBJECT
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        kinds = {_type_of(one) for one in typing.get_args(annotation) if one is not type(None)}
        return kinds.pop() if len(kinds) == 1 else None if _OBJECT not in kinds else _OBJECT
    if origin is typing.Literal:
        return _TYPES.get(type(typing.get_args(annotation)[0]), _OBJECT)
    return _TYPES.get(origin or annotation, _OBJECT)
