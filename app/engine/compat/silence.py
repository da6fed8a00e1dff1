"""Runs print nothing and log nothing of their own: CrewAI's output would show users' data.

Silence belongs to the run. A crew that another run's tool builds with `verbose=True`, or that a
slow factory builds beside it, prints nothing either. That includes the file that `output_log_file`
names.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from crewai import Crew
from crewai.agents.agent_executor import AgentExecutor
from crewai.events import event_context
from crewai.events.event_bus import crewai_event_bus
from crewai.events.event_listener import EventListener
from crewai.events.utils.console_formatter import ConsoleFormatter
from crewai.llms import base_llm
from crewai_core.printer import set_suppress_console_output, should_suppress_console_output
from rich.console import Console

from app.engine.compat.models import agents_of


class _RunConsole(Console):
    """Prints nothing within a run."""

    quiet = property(lambda _: should_suppress_console_output(), lambda _, __: None)


CONSOLE: Final = _RunConsole(width=None)
"""The console of all of CrewAI's executors and formatters."""


class _SilentFormatter(ConsoleFormatter):
    """Never verbose: the construction of one crew would print the events of another's run."""

    verbose = property(lambda _: False, lambda _, __: None)

    def __init__(self) -> None:
        super().__init__()
        self.console = CONSOLE


@contextmanager
def silent() -> Iterator[None]:
    """Within this, CrewAI prints nothing, in this context and in its threads and tasks."""
    token: Any = set_suppress_console_output(True)
    try:
        yield
    finally:
        token.var.reset(token)


def silence_process() -> None:
    """Silence what CrewAI configures once per process, by the crew that was built last."""
    listener = EventListener()
    if isinstance(listener.formatter, _SilentFormatter):
        return
    listener.verbose = False
    listener.formatter = event_context._console = crewai_event_bus._console = _SilentFormatter()
    AgentExecutor.__private_attributes__["_console"].default_factory = lambda: CONSOLE
    # Of failed calls whose start no listener reported.
    config = event_context._default_config
    config.mismatch_behavior = config.empty_pop_behavior = event_context.MismatchBehavior.SILENT
    logging.getLogger(base_llm.__name__).addFilter(_Once())
    # Its warnings about answers that are no JSON show parts of them.
    logging.getLogger("crewai.memory").setLevel(logging.ERROR)


def silence(crew: Crew) -> None:
    """Silence a newly built crew, whatever its `verbose` and `output_log_file` are."""
    crew.verbose = False
    crew.output_log_file = None
    crew._logger.verbose = False
    for agent in agents_of(crew):
        agent.verbose = False
        agent._logger.verbose = False


class _Once(logging.Filter):
    """Lets one line for each model pass: CrewAI repeats in each run that it estimates tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[Any] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not str(record.msg).startswith("Using an approximate input token count"):
            return True
        if record.args in self._seen:
            return False
        self._seen.add(record.args)
        return True
