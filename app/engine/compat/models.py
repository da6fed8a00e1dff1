"""The model of an agent: its own, or the deployment's."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from crewai import Agent, Crew, Process
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.llms.base_llm import BaseLLM
from crewai.memory.unified_memory import Memory, _non_streaming_analysis_llm
from crewai.tasks.llm_guardrail import LLMGuardrail
from crewai.utilities.llm_utils import create_llm

from app.engine.llm import pooled
from app.engine.llm.pooled import fallback_of
from app.projects.pending_model import PendingModel

_default: contextvars.ContextVar[BaseLLM | None] = contextvars.ContextVar(
    "crew_capture_default_model", default=None
)


WITHOUT_ACALL: Final[set[type[BaseLLM]]] = set()
"""The instrumented classes whose models can only be called in a thread."""


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


def has_acall(kind: type[BaseLLM]) -> bool:
    """Whether models of this class can be awaited, as far as it is known before the first call."""
    return kind.acall is not BaseLLM.acall and kind not in WITHOUT_ACALL


def configure_models(crew: Crew, model: CrewModel) -> list[BaseLLM]:
    """Configure the models of a newly built crew, and return them.

    The planner gets `model` if it has none; everything gets it if `model` replaces all others.
    Models that are given by name are created here, as CrewAI does later in the run.
    Models that speak OpenAI's API use the process's connection pool, with all their settings.
    """
    if crew.planning and crew.planning_llm is None:
        crew.planning_llm = model.llm
    configured: dict[int, BaseLLM] = {}

    def configure(llm: Any) -> Any:
        if llm is None:
            return None
        replaced = model.replaces or isinstance(llm, PendingModel)
        llm = model.llm if replaced else create_llm(llm)
        if not isinstance(llm, BaseLLM):
            return llm
        if id(llm) not in configured:
            configured[id(llm)] = pooled(llm)
        return configured[id(llm)]

    for agent in agents_of(crew):
        if isinstance(agent, Agent) and agent.planning_config is not None:
            # A copy: agents of all runs may share the configuration.
            agent.planning_config = agent.planning_config.model_copy()
    for memory in _memories(crew):
        if "llm" not in memory.model_fields_set:
            memory.llm = model.llm  # CrewAI's default is a name
    for holder, field in _model_fields(crew):
        holder[field] = configure(holder[field])
    for memory in _memories(crew):
        memory._llm_instance = _non_streaming_analysis_llm(memory.llm)
    return list(configured.values())


def models_of(crew: Crew) -> list[BaseLLM]:
    """The models that runs of a configured crew may call, each once."""
    held = [holder[field] for holder, field in _model_fields(crew)]
    models = [llm for llm in held if isinstance(llm, BaseLLM)]
    models += [second for llm in models if (second := fallback_of(llm)) is not None]
    return list({id(llm): llm for llm in models}.values())


def _model_fields(crew: Crew) -> Iterator[tuple[dict[str, Any], str]]:
    """Every field of a crew, and of its parts, whose model its runs may call.

    They are items of `vars`: an access to a deprecated field of CrewAI's would warn.
    """
    for agent in agents_of(crew):
        yield vars(agent), "llm"
        if isinstance(agent, Agent):
            yield vars(agent), "function_calling_llm"
            if agent.planning_config is not None:
                yield vars(agent.planning_config), "llm"
    for field in _models_in_use(crew):
        yield vars(crew), field
    for guardrail in _guardrails(crew):
        yield vars(guardrail), "llm"
    for memory in _memories(crew):
        yield vars(memory), "llm"


def _models_in_use(crew: Crew) -> list[str]:
    """The fields of the crew itself whose models its runs call.

    A name in another field needs no model: CrewAI would require its package and key.
    """
    fields = ["function_calling_llm"]
    if crew.process is Process.hierarchical and crew.manager_agent is None:
        fields.append("manager_llm")
    if crew.planning:
        fields.append("planning_llm")
    return fields


def _memories(crew: Crew) -> list[Memory]:
    """The memories that the crew and its agents use, directly or through a scope or slice."""
    held = [crew._memory, *(getattr(agent, "memory", None) for agent in agents_of(crew))]
    memories = [getattr(memory, "_memory", None) or memory for memory in held]
    return list({id(found): found for found in memories if isinstance(found, Memory)}.values())


def agents_of(crew: Crew) -> list[BaseAgent]:
    """The agents of a crew, of its tasks, and its manager, each once."""
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    return list({id(agent): agent for agent in holders if agent is not None}.values())


def _guardrails(crew: Crew) -> list[LLMGuardrail]:
    """The guardrails that are texts, which a model checks."""
    found = [guard for task in crew.tasks for guard in (task._guardrail, *task._guardrails)]
    return [guard for guard in found if isinstance(guard, LLMGuardrail)]
