"""The crews that the faster execution modes cover: only listed fields differ from their default.

An unlisted field, of this release of CrewAI or the next, rules out the faster mode for a crew.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crewai import Agent, Crew, Task
from crewai import task as task_module
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.core.providers import content_processor
from crewai.events.event_bus import crewai_event_bus
from crewai.hooks.dispatch import _global_hooks, _scoped_hooks_var
from crewai.llm_overlay import active as overlay_active
from crewai.llms.base_llm import BaseLLM
from crewai.tasks.conditional_task import ConditionalTask
from crewai.utilities.constants import CREWAI_TRAINED_AGENTS_FILE_ENV, TRAINED_AGENTS_DATA_FILE
from pydantic import BaseModel

from app.engine.compat.mcp_adapters import closes_mcp_server
from app.engine.compat.models import has_acall


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# CrewAI sets these in every object that it builds or has run; they are not part of the definition.
_OWN = _names("id i18n tools_handler cache_handler security_config usage_metrics token_usage")
# These have no effect in a run of a registered crew: CrewAI reads them when it builds an object,
# for `Agent.kickoff`, or for its own platform; or the engine clears them.
_NO_EFFECT = _names("config from_repository guardrail_max_retries share_crew tracing checkpoint")
_PLAN_AGENT = _names(
    """
    role goal backstory llm system_template prompt_template response_template
    use_system_prompt verbose max_iter max_retry_limit max_tokens respect_context_window
    use_better_compaction cache date_format callbacks function_calling_llm step_callback
    guardrail allow_code_execution code_execution_mode max_rpm
    """
)
_PLAN_TASK = _names(
    """
    description expected_output name agent context async_execution markdown output_file
    create_directory guardrail_max_retries config
    """
)
_PLAN_CREW = _names(
    """
    agents tasks name chat_llm manager_llm planning_llm function_calling_llm prompt_file verbose
    after_kickoff_callbacks max_rpm
    """
)
_NATIVE_AGENT = _PLAN_AGENT | _names(
    """
    tools tools_results allow_delegation max_execution_time inject_date tool_failure_policy
    memory embedder knowledge_sources knowledge knowledge_config
    planning planning_config reasoning max_reasoning_attempts multimodal skills mcps apps
    """
)
_NATIVE_TASK = _PLAN_TASK | _names(
    """
    tools callback guardrail guardrails max_retries output_json output_pydantic response_model
    tool_failure_policy condition allow_crewai_trigger_context human_input converter_cls
    input_files
    """
)
_NATIVE_CREW = _PLAN_CREW | _names(
    """
    process manager_agent before_kickoff_callbacks step_callback task_callback cache
    tool_failure_policy trained_agents_file memory embedder knowledge_sources knowledge
    planning skills
    """
)


class Unsupported(Exception):
    """An execution mode does not support a crew or a run of it; the message names the feature."""


def check_plan_covers(crew: Crew) -> None:
    """Raise Unsupported for a crew that a recorded plan does not cover."""
    _check_types(crew)
    if any(isinstance(task, ConditionalTask) for task in crew.tasks):
        raise Unsupported("a conditional task")
    _check_fields(crew, "crew", _PLAN_CREW)
    for callback in crew.after_kickoff_callbacks:
        if not closes_mcp_server(callback):
            raise Unsupported("crew.after_kickoff_callbacks")
    for agent in crew.agents:
        _check_fields(agent, f"agent {agent.role.strip()}", _PLAN_AGENT)
        if agent.max_iter < 1:
            raise Unsupported(f"agent {agent.role.strip()}.max_iter")
        if not isinstance(agent.llm, BaseLLM) or not has_acall(type(agent.llm)):
            raise Unsupported("a model without acall")
    for number, task in enumerate(crew.tasks, start=1):
        _check_fields(task, f"task {number}", _PLAN_TASK)
        if not any(task.agent is agent for agent in crew.agents):
            raise Unsupported(f"task {number}.agent is not among the crew's agents")
        for other in _context(task):
            if not any(other is known for known in crew.tasks[: number - 1]):
                raise Unsupported(f"task {number}.context is not among the tasks before it")
    _check_limits(crew)
    _check_agents_are_alone(crew)


def check_native_covers(crew: Crew) -> None:
    """Raise Unsupported for a crew that our executor would run differently from CrewAI's."""
    _check_types(crew)
    _check_fields(crew, "crew", _NATIVE_CREW)
    agents = list(crew.agents)
    if crew.manager_agent is not None:
        agents.append(crew.manager_agent)
    for agent in agents:
        _check_fields(agent, f"agent {agent.role.strip()}", _NATIVE_AGENT)
    for number, task in enumerate(crew.tasks, start=1):
        _check_fields(task, f"task {number}", _NATIVE_TASK)


def ignored_files(crew: Crew) -> list[str]:
    """The tasks whose `input_files` CrewAI ignores: it reads them by the package crewai-files."""
    if task_module.HAS_CREWAI_FILES:
        return []
    return [f"task {n}" for n, task in enumerate(crew.tasks, start=1) if task.input_files]


def check_environment() -> None:
    """Raise Unsupported while hooks, listeners or overlays observe CrewAI or change its texts."""
    if hooks_are_set():
        hooked = [point.value for point, hooks in _global_hooks.items() if hooks]
        raise Unsupported(f"a hook on {', '.join(hooked) or 'this run'}")
    if content_processor._content_processor.get() is not None:
        raise Unsupported("a content processor")
    if overlay_active.get() is not None:
        raise Unsupported("a model overlay")
    if foreign_listeners():
        raise Unsupported("an event listener")
    trained = os.environ.get(CREWAI_TRAINED_AGENTS_FILE_ENV, TRAINED_AGENTS_DATA_FILE)
    if os.path.exists(trained):  # noqa: PTH110 - a Path costs more than the look
        raise Unsupported(f"trained agents ({Path(trained).name})")


def hooks_are_set() -> bool:
    """Whether CrewAI has hooks, for all runs or for this one."""
    return any(_global_hooks.values()) or bool(_scoped_hooks_var.get())


def foreign_listeners() -> bool:
    """Whether listeners other than CrewAI's own are subscribed to its events."""
    bus = crewai_event_bus
    known = (len(bus._sync_handlers), len(bus._async_handlers), _count(bus._sync_handlers))
    if _seen.get("known") != known or bus._async_handlers:
        handlers = [
            handler
            for by_type in (bus._sync_handlers, bus._async_handlers)
            for group in by_type.values()
            for handler in group
        ]
        _seen["known"] = known
        _seen["foreign"] = not all(_is_crewais(handler) for handler in handlers)
    return bool(_seen["foreign"])


_seen: dict[str, Any] = {}


def _count(handlers: dict[Any, Any]) -> int:
    return sum(map(len, handlers.values()))


def _is_crewais(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).split(".")[0] == "crewai"


def _check_types(crew: Crew) -> None:
    """Raise Unsupported for an object whose class replaces code of CrewAI's."""
    agents: Iterable[BaseAgent | None] = [*crew.agents, crew.manager_agent]
    for thing in (crew, *agents, *crew.tasks):
        if thing is None:
            continue
        kind, base = type(thing), _base(thing)
        if base is None:
            raise Unsupported(f"{kind.__name__}, which is not CrewAI's Agent")
        if kind not in _replaced:
            _replaced[kind] = _replaced_by(kind, base)
        if _replaced[kind]:
            raise Unsupported(
                f"{kind.__name__}, a subclass of {base.__name__} with its own {_replaced[kind]}"
            )


def _base(thing: BaseModel) -> type[BaseModel] | None:
    """CrewAI's class of a crew, agent or task; None for an agent of another framework."""
    bases = (Crew, Agent, ConditionalTask, Task)
    return next((base for base in type(thing).__mro__ if base in bases), None)


# The names of CrewAI's attributes that a class replaces.
_replaced: dict[type, str] = {}


def _replaced_by(kind: type[BaseModel], base: type[BaseModel]) -> str:
    """The methods and attributes of `base` that its subclass replaces.

    Fields are not among them, since an object holds its own values. Neither are special methods:
    constructors run before any execution mode, and each mode uses the others as Python does.
    """
    known = {*dir(base), *base.model_fields, *base.__private_attributes__}
    names: set[str] = set()
    for ours in kind.__mro__[: kind.__mro__.index(base)]:
        private = vars(ours).get("__private_attributes__", {})
        inherited = base.__private_attributes__
        names.update(name for name in private if private[name] is not inherited.get(name))
        names.update(
            name
            for name, attribute in vars(ours).items()
            # Pydantic repeats a descriptor for each deprecated field.
            if not (name.startswith("__") or type(attribute).__module__.startswith("pydantic"))
        )
    return ", ".join(sorted((names & known) - _SET_BY_PYDANTIC))


_SET_BY_PYDANTIC = _names("_abc_impl model_config model_post_init")


def _check_fields(thing: BaseModel, name: str, covered: frozenset[str]) -> None:
    values = thing.__dict__
    for field, default in _defaults(_base(thing) or type(thing)).items():
        if field in covered or (field == "input_files" and not task_module.HAS_CREWAI_FILES):
            continue
        value = values.get(field, default)
        # Empty equals absent: CrewAI tests `if agent.apps`, never `is not None`.
        if value == default or (not value and not default):
            continue
        raise Unsupported(f"{name}.{field}")


_known_defaults: dict[type, dict[str, Any]] = {}


def _defaults(kind: type[BaseModel]) -> dict[str, Any]:
    if kind not in _known_defaults:
        _known_defaults[kind] = {
            name: None if field.is_required() else field.get_default(call_default_factory=True)
            for name, field in kind.model_fields.items()
            if name not in _OWN | _NO_EFFECT
        }
    return _known_defaults[kind]


def _check_limits(crew: Crew) -> None:
    """Raise Unsupported if the calls of the tasks alone could exceed a `max_rpm`."""
    if crew.max_rpm and crew.max_rpm < len(crew.tasks):
        raise Unsupported("crew.max_rpm, with more tasks than that")
    for agent in crew.agents:
        tasks = sum(task.agent is agent for task in crew.tasks)
        if agent.max_rpm and agent.max_rpm < tasks:
            raise Unsupported(f"agent {agent.role.strip()}.max_rpm, with more tasks than that")


def _check_agents_are_alone(crew: Crew) -> None:
    """Raise Unsupported for an agent with two concurrent tasks: CrewAI fails to record them."""
    busy: list[BaseAgent | None] = []
    for task in crew.tasks:
        if not task.async_execution:
            busy = []
        elif any(task.agent is other for other in busy):
            raise Unsupported("one agent in two asynchronous tasks at once")
        else:
            busy.append(task.agent)


def _context(task: Task) -> list[Task]:
    return task.context if isinstance(task.context, list) else []
