"""Copies what several builds of a crew share, so that each run has its own: a crew, or its tools.

CrewAI's `Crew.copy` rebuilds every object from a dump, which loses or changes some fields. Here
each object keeps all of its fields, and references between the objects lead to their copies.
"""

import copy
from collections.abc import Iterable
from types import MethodType
from typing import Any, cast

from crewai import Crew, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_builder.utilities.base_token_process import TokenProcess
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
from crewai.tools.base_tool import BaseTool
from crewai.utilities.rpm_controller import RPMController
from pydantic import BaseModel

# They hold the state of a run, and nothing of the definition.
_FRESH = (CacheHandler, ToolsHandler, TokenProcess)
_COLLECTIONS = (list, set, tuple, frozenset)


def copy_crew(crew: Crew) -> Crew:
    """A crew with copies of all agents and tasks; models, tools and knowledge are shared."""
    return cast(Crew, _Copier().of(crew))


def shared_memory(one: Crew, other: Crew) -> str | None:
    """The holder of a memory that two builds of a crew share; None if there is none."""
    if one is other and one.memory:
        return "the crew"
    shared = [agent for agent in one.agents if any(agent is its for its in other.agents)]
    return next((f"agent {agent.role.strip()}" for agent in shared if agent.memory), None)


def shared_tools(one: Crew, other: Crew) -> list[BaseTool]:
    """The tools that two builds of a crew share, such as those of its modules."""
    ours = {id(tool): tool for tool in _tools(one)}
    return [tool for tool in _tools(other) if id(tool) in ours]


def use_own_tools(crew: Crew, shared: Iterable[BaseTool]) -> None:
    """Replace `shared` tools by copies, which no run has used.

    A tool counts its uses, for its `max_usage_count` and in the prompt of a planner.
    """
    copies = {id(tool): tool.model_copy(update={"current_usage_count": 0}) for tool in shared}
    for holder in _holders(crew):
        if any(id(tool) in copies for tool in holder.tools or ()):
            # Not by assignment, which validates the tools.
            vars(holder)["tools"] = [copies.get(id(tool), tool) for tool in holder.tools]


def _holders(crew: Crew) -> list[Any]:
    managers = [crew.manager_agent] if crew.manager_agent is not None else []
    return [*crew.agents, *managers, *crew.tasks]


def _tools(crew: Crew) -> list[BaseTool]:
    """The tools of a crew's agents and tasks, each once."""
    held = (tool for holder in _holders(crew) for tool in holder.tools or ())
    return list({id(tool): tool for tool in held if isinstance(tool, BaseTool)}.values())


class _Copier:
    def __init__(self) -> None:
        # The originals are kept with their copies: a key is their `id`, which must stay theirs.
        self._copies: dict[int, tuple[Any, Any]] = {}

    def of(self, value: Any) -> Any:
        """The copy of a value, or the value itself; the same one at each call."""
        if id(value) in self._copies:
            return self._copies[id(value)][1]
        if type(value) in _COLLECTIONS:
            return type(value)(self.of(item) for item in value)
        if type(value) is dict:
            return {name: self.of(item) for name, item in value.items()}
        if isinstance(value, Crew | BaseAgent | Task):
            return self._of_object(value)
        made: Any
        if isinstance(value, _FRESH):
            made = type(value)()
        elif isinstance(value, RPMController) and value.max_rpm is not None:
            made = RPMController(max_rpm=value.max_rpm, logger=value.logger)
        elif isinstance(value, MethodType):  # such as the agents' limit of requests
            made = MethodType(value.__func__, self.of(value.__self__))
        else:
            return value
        self._copies[id(value)] = (value, made)
        return made

    def _of_object(self, value: BaseModel) -> BaseModel:
        made = copy.copy(value)
        self._copies[id(value)] = (value, made)
        fields, private = made.__dict__, made.__pydantic_private__ or {}
        for values in (fields, private):
            values.update([(name, self.of(item)) for name, item in values.items()])
        return made
