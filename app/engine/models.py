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


def complete_models(crew: Crew, model: BaseLLM) -> list[BaseLLM]:
    """Give `model` to what CrewAI would otherwise give a model name of its own; all models that
    the crew then has.
    """
    if crew.planning and crew.planning_llm is None:
        crew.planning_llm = model
    agents = [*crew.agents, *(task.agent for task in crew.tasks), crew.manager_agent]
    named = [crew.manager_llm, crew.planning_llm, *(agent.llm for agent in agents if agent)]
    return [llm for llm in named if isinstance(llm, BaseLLM)]
