"""Crews log nothing of their own: CrewAI's logs would show users' inputs and outputs.

This holds for the console and for the file that `output_log_file` names.
"""

from crewai import Crew
from crewai.events.event_listener import EventListener


def silence(crew: Crew) -> None:
    """Silence a newly built crew, whatever its `verbose` and `output_log_file` are."""
    crew.verbose = False
    crew.output_log_file = None
    crew._logger.verbose = False
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    for agent in holders:
        if agent is not None:
            agent.verbose = False
            agent._logger.verbose = False
    # CrewAI has one per process and configures it by the crew that was built last.
    listener = EventListener()
    listener.verbose = listener.formatter.verbose = False
