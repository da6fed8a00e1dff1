"""A served crew logs nothing of its own: it would show what users gave and got.

That holds for the console and for the file that `output_log_file` names.
"""

from crewai import Crew
from crewai.events.event_listener import EventListener


def silence(crew: Crew) -> None:
    """Make a crew that was just built quiet, whatever its `verbose` and `output_log_file` say."""
    crew.verbose = False
    crew.output_log_file = None
    crew._logger.verbose = False
    holders = [crew.manager_agent, *crew.agents, *(task.agent for task in crew.tasks)]
    for agent in holders:
        if agent is not None:
            agent.verbose = False
            agent._logger.verbose = False
    # CrewAI keeps one for the process and sets it by the crew that was built last.
    listener = EventListener()
    listener.verbose = listener.formatter.verbose = False
