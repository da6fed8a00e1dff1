"""Inputs: checked, cleaned and completed, with the field named in every error."""

from typing import Any

import pytest

from app.crews.options import CrewOptions, InputOptions
from app.crews.registry import CrewSpec
from app.engine import CrewDescription
from app.runs.crew_info import CrewInfo, crew_info
from app.runs.errors import InvalidInput
from app.runs.inputs import check_names, validate_inputs


def _no_crew() -> Any:
    raise AssertionError("inputs are checked without building the crew")


SPEC = CrewSpec("poem", _no_crew, inputs={"tone": InputOptions(default="calm")}, max_input_chars=10)


def _crew(*named: str, spec: CrewSpec = SPEC) -> CrewInfo:
    """The crew of `spec`, whose texts name these inputs."""
    return crew_info(spec, CrewDescription("poem", named, (), "plan", "", ""))


@pytest.mark.parametrize("given", [{}, {"tone": ""}, {"tone": " \n\t"}, {"tone": None}])
def test_an_empty_or_missing_input_becomes_the_default(given: dict[str, Any]) -> None:
    assert validate_inputs(_crew("tone"), given) == {"tone": "calm"}


def test_a_required_input_without_default_must_be_there() -> None:
    with pytest.raises(InvalidInput, match="topic: missing") as refused:
        validate_inputs(_crew("topic", "tone"), {"tone": "loud"})
    assert refused.value.field == "topic"


@pytest.mark.parametrize(
    "value", ["a\nb\tc", "ünï 🚀", "{tone}", "", 0, False, 1.5, [], {"a": [1]}]
)
def test_values_that_crewai_accepts_are_accepted_as_they_are(value: Any) -> None:
    assert validate_inputs(_crew("topic"), {"topic": value})["topic"] == value


def test_windows_line_ends_become_newlines() -> None:
    assert validate_inputs(_crew(), {"topic": "a\r\nb"})["topic"] == "a\nb"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("x" * 11, "11 characters; at most 10"),
        ("a\0b", r"U\+0000 at position 1"),
        ("a\rb", r"U\+000D"),
        ("\x1b[31m", r"U\+001B"),
        ("\x7f", r"U\+007F"),
        ("\x85", r"U\+0085"),
        ("\ud800", r"U\+D800"),
        (["fine", "a\0"], r"topic\[1\]: control character"),
        ({"inner": "x" * 11}, r"topic\.inner: 11 characters"),
        (object(), "must be a text, a number"),
    ],
)
def test_a_wrong_value_is_refused_by_name(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as refused:
        validate_inputs(_crew(), {"topic": value})
    assert refused.value.field.startswith("topic")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("topci", "the crew poem has no such input; did you mean topic?"),
        ("ton", "the crew poem has no such input; did you mean tone?"),
        ("colour", "the crew poem has no such input; its inputs are tone, topic"),
    ],
)
def test_an_unknown_input_is_refused_with_the_nearest_name(name: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_names(_crew("topic"), {"topic": "rain", name: "x"})
    assert (refused.value.field, refused.value.problem) == (name, problem)


@pytest.mark.parametrize("by", ["the crew", "the deployment"])
def test_a_crew_may_allow_extra_inputs(by: str) -> None:
    if by == "the crew":
        spec = CrewSpec("poem", _no_crew, allow_extra_inputs=True)
    else:
        spec = CrewSpec("poem", _no_crew, options=CrewOptions(allow_extra_inputs=True))
    check_names(_crew("topic", spec=spec), {"colour": "red"})


def test_a_deployment_may_refuse_extra_inputs_that_the_crew_allows() -> None:
    options = CrewOptions(allow_extra_inputs=False)
    spec = CrewSpec("poem", _no_crew, options=options, allow_extra_inputs=True)
    with pytest.raises(InvalidInput, match="colour: the crew poem has no such input"):
        check_names(_crew(spec=spec), {"colour": "red"})
