"""Which model an agent uses: its own, or the deployment's."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager

from crewai import Crew
from crewai.llms.base_llm import BaseLLM

_default: contextvars.ContextVar[BaseLLM | None] = contextvars.ContextVar(
    "crew_capture_default_model", default=None
)


@contextmanager
def default_model(model: BaseLLM) -> Iterator[None]:
    """Within this, whatever names no model gets `model`: agents, memories, planners.

    CrewAI would build an OpenAI client from the environment instead, and ask for its key.
    """
    token = _default.set(model)
    try:
        yield
    finally:
        _default.reset(token)


def current_default_model() -> BaseLLM | None:
    return _default.get()


def complete_models(crew: Crew, model: BaseLLM) -> None:
    """Give `model` to what CrewAI would otherwise give a model name of its own."""
    if crew.planning and crew.planning_llm is None:
        crew.planning_llm = model
