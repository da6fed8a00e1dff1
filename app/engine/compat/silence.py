"""Crews log nothing of their own: CrewAI's logs would show users' inputs and outputs.

This holds for the console and for the file that `output_log_file` names.
"""

from crewai import Crew
from crewai.events import event_context
from crewai.events.event_listener import EventListener
from crewai.events.utils.console_formatter import ConsoleFormatter


class _SilentFormatter(ConsoleFormatter):
    """Never verbose: the construction of one crew would print the events of another's run."""

    verbose = property(lambda _: False, lambda _, __: None)


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
    listener.verbose = False
    if not isinstance(listener.formatter, _SilentFormatter):
        listener.formatter = _SilentFormatter()
    # Of failed calls whose start no listener reported.
    config = event_context._default_config
    config.mismatch_behavior = config.empty_pop_behavior = event_context.MismatchBehavior.SILENT
