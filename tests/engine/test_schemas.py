"""Schemas in requests are made once for each class, and equal those of CrewAI and the SDK."""

from typing import Any

import pytest
from crewai.project import json_loader
from crewai.utilities import agent_utils, pydantic_schema_utils
from openai.lib._parsing import _completions
from openai.resources.chat.completions import completions
from pydantic import BaseModel

from app.engine.patches import apply


class Part(BaseModel):
    size: int | None = None


class Whole(BaseModel):
    parts: list[Part]


@pytest.mark.parametrize("options", [{}, {"strip_null_types": False}])
def test_a_description_is_that_of_crewai_and_made_once(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply()

    class Local(Whole):
        pass

    expected = pydantic_schema_utils.generate_model_description(Local, **options)
    found: Any = agent_utils.generate_model_description(Local, **options)
    assert found == expected
    found["json_schema"]["schema"].clear()
    monkeypatch.setattr(Local, "model_json_schema", None)
    assert agent_utils.generate_model_description(Local, **options) == expected


def test_a_response_format_is_that_of_the_sdk() -> None:
    apply()
    format_of: Any = vars(completions)["_type_to_response_format"]
    for _ in range(2):
        found = format_of(Whole)
        assert found == _completions.type_to_response_format_param(Whole)
    plain: Any = {"type": "json_object"}
    assert format_of(plain) is plain


def test_a_declaration_is_read_again_when_it_changes() -> None:
    apply()
    for text in ("one", "two", "one"):
        assert json_loader.parse_jsonc(f'{{"text": "{text}"}} // a comment') == {"text": text}
