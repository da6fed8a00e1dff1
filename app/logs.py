"""The format of log lines: for people (`console`) or for machines (`json`)."""

import logging
import sys
from typing import Literal

import structlog

# Of a message or a stack trace.
_MAX_TEXT_CHARACTERS = 8000


def configure_logging(level: str, log_format: Literal["console", "json"]) -> None:
    """Send every log line of the process to standard error in the given format."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _without_color_message,
        structlog.processors.format_exc_info,
        _bounded,
    ]
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The rich formatter needs seconds for each trace and blocks the event loop meanwhile.
            exception_formatter=structlog.dev.plain_traceback,
        )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # The MCP SDK logs requests that it refuses, with their inputs, through the root logger.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)
    # A line for each request of each library would hide the lines about thousands of runs.
    for name in ("httpx", "botocore", "aiosqlite", "alembic", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # They log clients' mistakes, with inputs; the clients receive these errors, too.
    logging.getLogger("mcp").setLevel(logging.ERROR)
    logging.getLogger("a2a").setLevel(logging.CRITICAL)


def _bounded(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Shorten long texts in the middle, so that no request makes large log lines."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_TEXT_CHARACTERS:
            half = _MAX_TEXT_CHARACTERS // 2
            event[name] = f"{value[:half]}\n[...]\n{value[-half:]}"
    return event


def _without_color_message(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.pop("color_message", None)  # uvicorn's copy of the message
    return event
