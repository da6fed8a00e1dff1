"""The inputs of a run: validated in one pass, and completed with the crew's defaults."""

import re
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from app.runs.crew_info import CrewInfo, CrewInput
from app.runs.errors import InvalidInput, InvalidInputs, MissingInputs

MAX_DEPTH: Final = 64
"""How deep lists and objects of one input may nest."""
MAX_VALUES: Final = 10_000
"""How many values, nested ones included, the inputs of one run may hold."""
MAX_BATCH_VALUES: Final = 500_000
"""How many values the inputs of all runs of a batch may hold together."""
MAX_CHARACTERS: Final = 1_000_000
"""How many characters all texts and names in the inputs of one run may have together."""
MAX_NAME_CHARACTERS: Final = 200

# Of one run, in one error.
_MAX_ERRORS: Final = 20

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_NOT_STORABLE = re.compile(r"[\x00\ud800-\udfff]")
# Of the path to a value, in an error.
_MAX_PATH_CHARACTERS: Final = 200


def validate_inputs(crew: CrewInfo, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs that a run of the crew gets: the given ones, completed with defaults.

    A default replaces an empty or missing input. Values are those that CrewAI accepts: strings,
    numbers, booleans, lists and objects of them. Line ends become newlines. The pass is linear in
    the size of the inputs.

    Raises:
        MissingInputs: required inputs are missing; lists all of them.
        InvalidInput: an input has another type than declared, is too long, or is nested too deep.
            InvalidInputs if there are several.
            It contains a control character other than newline and tab. The inputs exceed
            `MAX_VALUES` or `MAX_CHARACTERS`. The error names the input.
    """
    validation = _Validation()
    declared = {input_.name: input_ for input_ in crew.inputs}
    inputs: dict[str, Any] = {}
    errors: list[InvalidInput] = []
    for name, value in given.items():
        try:
            inputs[name] = _validated(validation, crew, declared.get(name), name, value)
        except InvalidInput as error:
            errors.append(error)
            if len(errors) == _MAX_ERRORS:
                break
    if errors:
        raise errors[0] if len(errors) == 1 else InvalidInputs(errors)
    for name, default in crew.defaults.items():
        if _is_empty(inputs.get(name)):
            inputs[name] = default
    if missing := [name for name in crew.required if inputs.get(name) is None]:
        it = "it" if len(missing) == 1 else "them"
        raise MissingInputs(missing, f"missing; the crew {crew.name} needs {it}")
    return inputs


def check_names(crew: CrewInfo, given: Iterable[str]) -> None:
    """Raise InvalidInput for an input that the crew does not have; it names the nearest one."""
    if crew.allow_extra_inputs:
        return
    known = {input_.name for input_ in crew.inputs}
    for name in given:
        if name not in known:
            clean_text(name, "inputs", MAX_NAME_CHARACTERS)
            raise InvalidInput(name, _unknown(crew, name, known))


def _unknown(crew: CrewInfo, name: str, known: Collection[str]) -> str:
    problem = f"the crew {crew.name} has no such input"
    if nearest := get_close_matches(name, sorted(known), 1):
        return f"{problem}; did you mean {nearest[0]}?"
    inputs = ", ".join(sorted(known))
    return f"{problem}; its inputs are {inputs}" if inputs else f"{problem}; it has no inputs"


def assumed_inputs(crew: CrewInfo, given: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the inputs that are empty or missing, so that their defaults apply."""
    return tuple(name for name in crew.defaults if _is_empty(given.get(name)))


def clean_text(text: str, field: str, max_chars: int) -> str:
    """Return a text for the crew's prompts, with newlines as line ends. Raises InvalidInput."""
    text = text.replace("\r\n", "\n")
    if problem := _problem_of(text, max_chars):
        raise InvalidInput(field, problem)
    return text


def check_bounds(field: str, value: object, subject: str) -> None:
    """Raise InvalidInput for a JSON value beyond the bounds of a run's inputs; any text is allowed.

    `subject` names the value in the errors.
    """
    _Bounds(subject).clean(field, value, MAX_CHARACTERS)


def check_batch_values(inputs: object, previous: int) -> int:
    """Return the number of values in a batch, up to and with this run's inputs.

    Checked while a batch is decoded, because many values need much memory.
    `previous` is the number before. Raises InvalidInput beyond `MAX_BATCH_VALUES`.
    """
    count = previous
    nested: list[Iterable[object]] = [(inputs,)]
    while nested:
        for value in nested.pop():
            count += 1
            if isinstance(value, dict):
                nested.append(value.values())
            elif isinstance(value, list):
                nested.append(value)
        if count > MAX_BATCH_VALUES:
            problem = f"the runs of a batch may hold at most {MAX_BATCH_VALUES:,} values together"
            raise InvalidInput("inputs", problem)
    return count


def check_storable(text: str, field: str) -> None:
    """Raise InvalidInput for a text that no database column can store.

    Checked before the text joins a group commit: the whole group would fail and be bisected.
    """
    if found := _NOT_STORABLE.search(text):
        problem = f"character U+{ord(found[0]):04X} at position {found.start()} is not allowed"
        raise InvalidInput(field, problem)


def _validated(
    validation: "_Validation", crew: CrewInfo, declared: CrewInput | None, name: str, value: object
) -> Any:
    clean_text(name, "inputs", MAX_NAME_CHARACTERS)
    if declared is None:
        return validation.clean(name, value, crew.max_input_chars)
    if _is_empty(value) and declared.type not in (None, "string"):
        return None  # a form's field that was left empty
    if value is not None and not declared.allows(value):
        raise InvalidInput(name, f"must be of type {declared.type}")
    return validation.clean(name, value, declared.max_chars)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _problem_of(text: str, max_chars: int) -> str | None:
    if len(text) > max_chars:
        return f"{len(text)} characters; at most {max_chars} are allowed"
    if found := _CONTROL.search(text):
        return (
            f"control character U+{ord(found[0]):04X} at position {found.start()}; "
            "only newline and tab are allowed"
        )
    return None


class _Validation:
    """One pass over the inputs of one run; its bounds hold for all of them together.

    The path to a value is kept as a stack and rendered for an error only. Rendered for every value,
    long names around many values would block the event loop for minutes.
    """

    def __init__(self, subject: str = "the inputs of a run") -> None:
        self._subject = subject
        self._values = 0
        self._characters = 0
        self._path: list[str | int] = []

    def clean(self, name: str, value: object, max_chars: int) -> Any:
        if isinstance(value, list | dict) and self._is_clean(value, max_chars):
            return value
        self._path = [name]
        return self._clean(value, max_chars)

    def _is_clean(self, value: object, max_chars: int) -> bool:
        """Count a list or an object, and return True, if nothing in it needs a change or an error.

        A loop over the levels needs a fifth of the time of the recursion.
        """
        values, characters, depth = self._values + 1, self._characters, 0
        level = [value]
        while level and values <= MAX_VALUES and characters <= MAX_CHARACTERS:
            depth += 1
            texts: list[object] = []
            below: list[object] = []
            for one in level:
                if isinstance(one, str):
                    texts.append(one)
                elif isinstance(one, list) and depth <= MAX_DEPTH:
                    below += one
                elif isinstance(one, dict) and depth <= MAX_DEPTH:
                    texts += one
                    below += one.values()
                elif one is not None and not isinstance(one, bool | int | float):
                    return False
            for text in texts:
                if not isinstance(text, str) or not self._is_clean_text(text, max_chars):
                    return False
                characters += len(text)
            values += len(below)
            level = below
        if level or characters > MAX_CHARACTERS:
            return False
        self._values, self._characters = values, characters
        return True

    def _is_clean_text(self, text: str, max_chars: int) -> bool:
        return len(text) <= max_chars and not _CONTROL.search(text)

    def _clean(self, value: object, max_chars: int) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._refused(f"{self._subject} may hold at most {MAX_VALUES:,} values")
        if isinstance(value, str):
            return self._clean_text(value, max_chars)
        if isinstance(value, list):
            return self._clean_list(value, max_chars)
        if isinstance(value, dict):
            return self._clean_object(value, max_chars)
        if value is None or isinstance(value, (bool, int, float)):
            return value
        raise self._refused("must be a text, a number, true, false, null, a list or an object")

    def _clean_text(self, text: str, max_chars: int) -> str:
        text = text.replace("\r\n", "\n")
        if problem := _problem_of(text, max_chars):
            if len(text) > max_chars:
                problem += " (max_chars of the input in CREWS_FILE)"
            raise self._refused(problem)
        return self._counted(text)

    def _counted(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > MAX_CHARACTERS:
            raise self._refused(
                f"{self._subject} may have at most {MAX_CHARACTERS:,} characters together"
            )
        return text

    def _clean_list(self, items: list[Any], max_chars: int) -> list[Any]:
        self._descend(0)
        cleaned = []
        for index, item in enumerate(items):
            self._path[-1] = index
            cleaned.append(self._clean(item, max_chars))
        self._path.pop()
        return cleaned

    def _clean_object(self, members: dict[Any, Any], max_chars: int) -> dict[str, Any]:
        cleaned = {}
        for name, member in members.items():
            key = self._clean_text(str(name), max_chars)
            self._descend(key)
            cleaned[key] = self._clean(member, max_chars)
            self._path.pop()
        return cleaned

    def _descend(self, step: str | int) -> None:
        self._path.append(step)
        if len(self._path) > MAX_DEPTH + 1:
            raise self._refused(f"nested deeper than {MAX_DEPTH} levels")

    def _refused(self, problem: str) -> InvalidInput:
        return InvalidInput(_rendered(self._path), problem)


class _Bounds(_Validation):
    """A pass that refuses no text for its characters."""

    def _is_clean_text(self, text: str, max_chars: int) -> bool:
        return True

    def _clean_text(self, text: str, max_chars: int) -> str:
        return self._counted(text)


def _rendered(path: list[str | int]) -> str:
    """Render a path such as `topic.items[3]`; a long one keeps its beginning."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
        if len(text) > _MAX_PATH_CHARACTERS:
            return text[:_MAX_PATH_CHARACTERS] + "..."
    return text
