"""No inputs, however nested, many or large, make validation expensive: each bound has an error."""

import sys
from collections.abc import Callable
from typing import Any

import pytest

from app.crews.registry import CrewSpec
from app.engine import CrewDescription
from app.runs.crew_info import crew_info
from app.runs.errors import InvalidInput
from app.runs.inputs import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_VALUES,
    _Validation,
    validate_inputs,
)


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


def test_values_that_need_no_change_need_no_call_each() -> None:
    few, many = ({"a": [[{"b": 0}] for _ in range(count)]} for count in (100, 1100))
    growth = _calls(lambda: validate_inputs(CREW, many)) - _calls(
        lambda: validate_inputs(CREW, few)
    )
    assert growth <= 1000  # the name of each object


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(_nested(MAX_DEPTH, inside=[]), id="a list below the deepest level"),
        pytest.param(_nested(MAX_DEPTH, inside={}), id="an object below the deepest level"),
        pytest.param(_nested(MAX_DEPTH - 1, inside=[0]), id="a list on the deepest level"),
        pytest.param(_nested(MAX_DEPTH + 1), id="too deep"),
        pytest.param([0] * (MAX_VALUES - 1), id="most values"),
        pytest.param([[]] * MAX_VALUES, id="too many values"),
        pytest.param(["x" * 4000] * 250, id="most characters"),
        pytest.param(["x" * 4000] * 250 + ["x"], id="too many characters"),
        pytest.param([{"x" * 4000: "x" * 4000}] * 126, id="too many characters in names"),
        pytest.param({"a": ["x" * 4001]}, id="a long text"),
        pytest.param({"x" * 4001: 0}, id="a long name"),
        pytest.param(["a\r\nb", {"a\r\nb": "\t\n"}], id="line ends"),
        pytest.param(["a\rb"], id="a carriage return"),
        pytest.param([{"\0": 0}], id="a control character in a name"),
        pytest.param(["\ud800"], id="half a character"),
        pytest.param([None, True, 1, 1.5, "", {}, []], id="all types"),
        pytest.param([b"x"], id="another type"),
        pytest.param({"a": {1: 2}}, id="a name that is no text"),
    ],
)
@pytest.mark.parametrize("before", [{}, {"b": ["x"] * 10}], ids=["alone", "after another input"])
def test_the_pass_over_levels_agrees_with_the_recursion(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, Any], value: Any
) -> None:
    given = {**before, "a": value}
    quick = _outcome(given)
    monkeypatch.setattr(_Validation, "_is_clean", lambda *_: False)
    assert quick == _outcome(given)


def _outcome(inputs: dict[str, Any]) -> object:
    """The validated inputs, or the text of the error."""
    try:
        return validate_inputs(CREW, inputs)
    except InvalidInput as error:
        return str(error)


def _renders(inputs: dict[str, Any]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        calls: list[object] = []
        patch.setattr("app.runs.inputs._rendered", calls.append)
        validate_inputs(CREW, inputs)
        return bool(calls)
