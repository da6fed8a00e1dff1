"""The lines of a command beside its own output: what it waits for, and warnings."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console

from app.logs import configure_logging
from app.settings import Settings, load_settings

logger = logging.getLogger("crew_capture.cli")

_IMPORTING = "Importing CrewAI, which takes some seconds"
_OWN_LOGGERS = ("app.", "crew_capture.", "storage.")


@contextmanager
def importing() -> Iterator[None]:
    """Within this, CrewAI is imported: a spinner on a terminal, a log line elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(_IMPORTING):
            yield
    else:
        logger.info("%s", _IMPORTING)
        yield


def settings_of_command() -> Settings:
    """The settings, for a command that logs warnings of the service only. Raises SettingsError."""
    settings = load_settings()
    log_own_warnings(settings.log_format)
    return settings


def log_own_warnings(log_format: Literal["console", "json"]) -> None:
    """Log warnings of the service only: the command reports the errors of crews and models itself.

    Of libraries' lines, only their origin would be logged.
    """
    configure_logging("WARNING", log_format)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name.startswith(_OWN_LOGGERS))
