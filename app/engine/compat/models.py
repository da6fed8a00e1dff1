"""The model of an agent: its own, or the deployment's."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from crewai import Crew
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
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    agents = {id(agent): agent for agent in holders if agent is not None}
    configured: dict[int, BaseLLM] = {}

    def configure(llm: Any) -> Any:
        if not isinstance(llm, BaseLLM):
            return llm
        if model.replaces:
            llm = model.llm
        if id(llm) not in configured:
            configured[id(llm)] = pooled(llm)
        return configured[id(llm)]

    for agent in agents.values():
        agent.llm = configure(agent.llm)
    for field in ("manager_llm", "planning_llm"):
        setattr(crew, field, configure(getattr(crew, field)))
    return list(configured.values())
