"""No inputs, however nested, many or large, make validation expensive: each bound has an error."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from app.crews.registry import CrewSpec
from app.engine import CrewDescription
from app.runs.crew_info import crew_info
from app.runs.errors import InvalidInput
from app.runs.inputs import MAX_CHARACTERS, MAX_DEPTH, MAX_VALUES, validate_inputs


def _no_crew() -> Any:
    raise AssertionError("inputs are validated without building the crew")


CREW = crew_info(
    CrewSpec("poem", _no_crew, max_input_chars=4000),
    CrewDescription("poem", (), (), "plan", "", ""),
)


def _nested(depth: int, *, name: str = "a", inside: Any = 0) -> Any:
    value = inside
    for _ in range(depth):
        value = {name: value}
    return value


def _calls(function: Callable[[], object]) -> int:
    """Count the Python function calls of `function`: its cost, whatever else the machine does."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_inputs_at_their_bounds_are_accepted() -> None:
    deepest = _nested(MAX_DEPTH)
    assert validate_inputs(CREW, {"a": deepest}) == {"a": deepest}
    most = [0] * (MAX_VALUES - 1)
    assert validate_inputs(CREW, {"a": most}) == {"a": most}
    longest = ["x" * 4000] * (MAX_CHARACTERS // 4000)
    assert validate_inputs(CREW, {"a": longest}) == {"a": longest}


@pytest.mark.parametrize(
    ("inputs", "field", "problem"),
    [
        ({"a": _nested(MAX_DEPTH + 1)}, "a.a.a", "nested deeper than 64 levels"),
        ({"a": [[0] * MAX_VALUES]}, "a[0][9998]", "at most 10,000 values"),
        ({"a": [0] * 6000, "b": [0] * 6000}, "b[", "at most 10,000 values"),
        ({"a": ["x" * 4000] * 251}, "a[250]", "at most 1,000,000 characters together"),
        ({"a": {"x" * 4000 + str(i): 0 for i in range(3)}}, "a", "4001 characters"),
        ({"n" * 201: 0}, "inputs", "201 characters; at most 200"),
        ({"a\0": 0}, "inputs", r"U\+0000"),
    ],
)
def test_inputs_beyond_a_bound_are_refused_by_name(
    inputs: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(InvalidInput, match=problem) as refused:
        validate_inputs(CREW, inputs)
    assert refused.value.field.startswith(field)


def test_an_error_names_a_long_path_by_its_beginning() -> None:
    inputs = _nested(60, name="n" * 4000, inside="\0")
    with pytest.raises(InvalidInput, match="control character") as refused:
        validate_inputs(CREW, {"a": inputs})
    assert refused.value.field.startswith("a.nnn")
    assert len(str(refused.value)) < 400


def test_long_names_around_many_values_are_cheap() -> None:
    # No path is rendered on the way: work done for each value does not grow with what is around it.
    few = {"a": _nested(60, name="n" * 4000, inside=[0] * 100)}
    many = {"a": _nested(60, name="n" * 4000, inside=[0] * 1100)}
    rendered = [size for size in (few, many) if _renders(size)]
    assert not rendered
    growth = _calls(lambda: validate_inputs(CREW, many)) - _calls(
        lambda: validate_inputs(CREW, few)
    )
    assert growth <= 1000 * 2


def _renders(inputs: dict[str, Any]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        calls: list[object] = []
        patch.setattr("app.runs.inputs._rendered", calls.append)
        validate_inputs(CREW, inputs)
        return bool(calls)
