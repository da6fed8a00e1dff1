"""Validates the inputs of a run, and completes them with the crew's defaults."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from app.crews.options import InputOptions
from app.crews.registry import CrewSpec
from app.runs.errors import InvalidInput, MissingInputs

_ANY = InputOptions()
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def validate_inputs(
    spec: CrewSpec, required: Iterable[str], given: Mapping[str, Any]
) -> dict[str, Any]:
    """The inputs of a run: those given, with defaults for empty or missing ones.

    Values are of the types that CrewAI accepts: strings, numbers, booleans, lists and objects of
    them. Line ends become newlines. Inputs that the crew doesn't name are kept, as CrewAI does.

    Raises:
        MissingInputs: inputs are missing; names them all.
        InvalidInput: an input has another type than it declares, is too long, or holds a control
            character other than newline and tab; names the input.
    """
    inputs = {name: _checked(spec, name, value) for name, value in given.items()}
    for name, default in spec.defaults.items():
        if _is_empty(inputs.get(name)):
            inputs[name] = default
    if missing := [name for name in required if inputs.get(name) is None]:
        it = "it" if len(missing) == 1 else "them"
        raise MissingInputs(missing, f"missing; the crew {spec.name} needs {it}")
    return inputs


def _checked(spec: CrewSpec, name: str, value: object) -> Any:
    declared = spec.inputs.get(name, _ANY)
    if _is_empty(value) and declared.type not in (None, "string"):
        return None  # a form's field that was left empty
    if value is not None and not declared.allows(value):
        raise InvalidInput(name, f"must be of type {declared.type}")
    return _clean(value, name, declared.max_chars or spec.max_input_chars)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _clean(value: object, field: str, max_chars: int) -> Any:
    if isinstance(value, str):
        return clean_text(value, field, max_chars)
    if isinstance(value, list):
        return [_clean(item, f"{field}[{i}]", max_chars) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            clean_text(str(name), field, max_chars): _clean(item, f"{field}.{name}", max_chars)
            for name, item in value.items()
        }
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise InvalidInput(
        field, f"a {type(value).__name__}; allowed are texts, numbers, booleans, lists, objects"
    )


def clean_text(text: str, field: str, max_chars: int) -> str:
    """A text for the crew's prompts, with newlines as line ends. Raises InvalidInput."""
    text = text.replace("\r\n", "\n")
    if len(text) > max_chars:
        raise InvalidInput(field, f"{len(text)} characters; at most {max_chars} are allowed")
    if found := _CONTROL.search(text):
        raise InvalidInput(
            field,
            f"control character U+{ord(found[0]):04X} at position {found.start()}; "
            "only newline and tab are allowed",
        )
    return text
