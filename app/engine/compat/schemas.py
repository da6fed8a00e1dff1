"""Schemas that requests contain: made once for each class, not once for each call.

pydantic makes the schema of a class anew for each request of a tool or a structured answer, in a
millisecond of CPU. CrewAI reads the declaration of a crew for each run, character by character.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from crewai.llms.providers.openai import completion
from crewai.project import json_loader
from crewai.tools import structured_tool
from crewai.utilities import agent_utils
from crewai.utilities.pydantic_schema_utils import generate_model_description
from openai.lib._parsing._completions import type_to_response_format_param
from openai.resources.chat.completions import completions
from pydantic import BaseModel

_DECLARATIONS = 256


def _by_class(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, whose first argument is a class: each caller gets a copy of what it has made."""
    made: WeakKeyDictionary[type, dict[Any, Any]] = WeakKeyDictionary()

    @functools.wraps(make)
    def of_class(model: Any, **options: Any) -> Any:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return make(model, **options)
        known = made.setdefault(model, {})
        key = tuple(options.items())
        if key not in known:
            known[key] = make(model, **options)
        return copy.deepcopy(known[key])

    return of_class


_description = _by_class(generate_model_description)

INSTRUMENTED: tuple[tuple[Any, str, Any], ...] = (
    (agent_utils, "generate_model_description", _description),
    (structured_tool, "generate_model_description", _description),
    (completion, "generate_model_description", _description),
    (completions, "_type_to_response_format", _by_class(type_to_response_format_param)),
    (
        json_loader,
        "_strip_jsonc_comments",
        functools.lru_cache(_DECLARATIONS)(json_loader._strip_jsonc_comments),
    ),
)
