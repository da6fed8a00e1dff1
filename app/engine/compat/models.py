"""The model of an agent: its own, or the deployment's."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from crewai import Crew
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.llms.base_llm import BaseLLM

from app.engine.llm import pooled

_default: contextvars.ContextVar[BaseLLM | None] = contextvars.ContextVar(
    "crew_capture_default_model", default=None
)


@dataclass(frozen=True, slots=True)
class CrewModel:
    """The default model of a crew's agents; the model of all of them if it `replaces` theirs."""

    llm: BaseLLM
    replaces: bool = False


@contextmanager
def default_model(model: BaseLLM) -> Iterator[None]:
    """Within this, agents, memories and planners without a model of their own get `model`.

    CrewAI would build an OpenAI client from the environment instead, which requires a key.
    """
    token = _default.set(model)
    try:
        yield
    finally:
        _default.reset(token)


def current_default_model() -> BaseLLM | None:
    return _default.get()


def configure_models(crew: Crew, model: CrewModel) -> list[BaseLLM]:
    """Configure the models of a newly built crew, and return them.

    The planner gets `model` if it has none; everything gets it if `model` replaces all others.
    Models that speak OpenAI's API use the process's connection pool, with all their settings.
    """
    if crew.planning and crew.planning_llm is None:
        crew.planning_llm = model.llm
    configured: dict[int, BaseLLM] = {}

    def configure(llm: Any) -> Any:
        if not isinstance(llm, BaseLLM):
            return llm
        if model.replaces:
            llm = model.llm
        if id(llm) not in configured:
            configured[id(llm)] = pooled(llm)
        return configured[id(llm)]

    for agent in _agents(crew):
        agent.llm = configure(agent.llm)
    for field in ("manager_llm", "planning_llm"):
        setattr(crew, field, configure(getattr(crew, field)))
    return list(configured.values())


def models_of(crew: Crew) -> list[BaseLLM]:
    """The models of a configured crew, each once."""
    held = [agent.llm for agent in _agents(crew)] + [crew.manager_llm, crew.planning_llm]
    return list({id(llm): llm for llm in held if isinstance(llm, BaseLLM)}.values())


def _agents(crew: Crew) -> list[BaseAgent]:
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    return list({id(agent): agent for agent in holders if agent is not None}.values())
