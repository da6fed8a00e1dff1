"""Which model an agent uses: its own, or the deployment's."""

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
    """The model of a crew's agents that name none of their own; of all of them if it `replaces`."""

    llm: BaseLLM
    replaces: bool = False


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


def settle_models(crew: Crew, model: CrewModel) -> list[BaseLLM]:
    """Settle which models a crew that was just built uses, and return them.

    What CrewAI would give a model name of its own gets `model`, as does everything if `model`
    replaces all others. Models that speak OpenAI's API go
    over the process's pool of connections, with all their settings.
    """
    if crew.planning and crew.planning_llm is None:
        crew.planning_llm = model.llm
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    agents = {id(agent): agent for agent in holders if agent is not None}
    settled: dict[int, BaseLLM] = {}

    def settle(llm: Any) -> Any:
        if not isinstance(llm, BaseLLM):
            return llm
        if model.replaces:
            llm = model.llm
        if id(llm) not in settled:
            settled[id(llm)] = pooled(llm)
        return settled[id(llm)]

    for agent in agents.values():
        agent.llm = settle(agent.llm)
    for field in ("manager_llm", "planning_llm"):
        setattr(crew, field, settle(getattr(crew, field)))
    return list(settled.values())
