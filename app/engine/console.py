"""A served crew writes nothing to the console: it would show what users gave and got."""

from crewai import Crew
from crewai.events.event_listener import EventListener


def silence(crew: Crew) -> None:
    """Make a crew that was just built quiet, whatever its `verbose` says."""
    crew.verbose = False
    crew._logger.verbose = False
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    for agent in holders:
        if agent is not None:
            agent.verbose = False
            agent._logger.verbose = False
    # CrewAI keeps one for the process and sets it by the crew that was built last.
    listener = EventListener()
    listener.verbose = listener.formatter.verbose = False
