"""Copies a crew that was built once, so that each run has its own: no kickoff has used it yet.

CrewAI's `Crew.copy` rebuilds every object from a dump, which loses or changes some fields. Here
each object keeps all of its fields, and references between the objects lead to their copies.
"""

import copy
from types import MethodType
from typing import Any, cast

from crewai import Crew, Task
from crewai.agents.agent_builder.base_agent import BaseAgent
from crewai.agents.agent_builder.utilities.base_token_process import TokenProcess
from crewai.agents.cache.cache_handler import CacheHandler
from crewai.agents.tools_handler import ToolsHandler
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
