"""Shows what a command waits for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

logger = logging.getLogger("crew_capture.cli")


@contextmanager
def importing() -> Iterator[None]:
    """Within this, CrewAI is imported: a spinner on a terminal, a log line elsewhere."""
    text = "Importing CrewAI, which takes some seconds"
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        logger.info(text)
        yield
