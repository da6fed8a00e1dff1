"""The format of log lines, for people (`console`) or for machines (`json`), and their privacy.

No line holds a text that a model or a user wrote. Three rules ensure this for every logger:

- Libraries: records below WARNING are dropped. Others state where in the library they were logged,
  without their text. `_PLAIN_LIBRARIES` never see inputs or outputs, so they keep their lines.
- The service's own records: an exception among the arguments is replaced by its type. Messages
  are constants, and a test lists every other argument.
- Tracebacks have files, lines and types, without the exceptions' texts.

Exceptions of `_PLAIN_ERRORS` keep their texts: these name settings, files, hosts and keys of
outputs. The code of crews logs what it chooses to.
"""

import logging
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, ParamSpec, TextIO, TypeVar
from uuid import UUID

import structlog

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the HTTP request that the current code handles; log lines have it as a field.

It may be the client's own: a short text of few characters, which can't be mistaken for others.
"""


@dataclass(frozen=True, slots=True)
class RunFields:
    """The fields of all log lines within a run. `attempt` is None until the run is claimed."""

    run_id: str
    crew: str
    attempt: int | None = None
    trace_id: str | None = None


run_fields: ContextVar[RunFields | None] = ContextVar("run_fields", default=None)
"""The run whose code executes; None outside of runs."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _no_trace() -> str | None:
    return None


_current_trace_id: Callable[[], str | None] = _no_trace


def set_trace_ids(current_trace_id: Callable[[], str | None] | None) -> None:
    """Read the trace id of each line within a run from this function; None: there are none."""
    global _current_trace_id  # noqa: PLW0603 - one per process, as the handlers of logging
    _current_trace_id = current_trace_id or _no_trace


@contextmanager
def lines_of_run(run_id: UUID, crew: str, attempt: int | None = None) -> Iterator[None]:
    """Within this, log lines have the fields of the run, also those of asyncio tasks."""
    token = run_fields.set(RunFields(str(run_id), crew, attempt))
    try:
        yield
    finally:
        run_fields.reset(token)


def with_run_fields(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The function with the log fields of this context, for another thread.

    Outside of runs, the function itself.
    """
    fields, request = _fields_with_trace(), request_id.get()
    if fields is None:
        return function

    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        tokens = run_fields.set(fields), request_id.set(request)
        try:
            return function(*args, **kwargs)
        finally:
            run_fields.reset(tokens[0])
            request_id.reset(tokens[1])

    return call


def _fields_with_trace() -> RunFields | None:
    fields = run_fields.get()
    if fields is None or (trace_id := _current_trace_id()) is None:
        return fields
    return RunFields(fields.run_id, fields.crew, fields.attempt, trace_id)


# Of a message or a stack trace.
_MAX_TEXT_CHARACTERS = 8000
_OWN_LOGGERS = ("app", "crew_capture", "storage")
_PLAIN_LIBRARIES = ("alembic", "uvicorn")
_PLAIN_ERRORS = ("app.cli.", "app.crews.", "app.db.", "app.settings.", "storage.")
_LIBRARY_FOLDERS = tuple(
    os.path.join(sysconfig.get_path(name), "")  # noqa: PTH118 - compared with records' paths
    for name in ("purelib", "platlib", "stdlib", "platstdlib")
)


def configure_logging(level: str, log_format: Literal["console", "json"]) -> None:
    """Send every log line of the process to standard error in the given format."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _without_color_message,
        _with_request_id,
        _with_run_fields,
        _bounded,
    ]
    renderer: structlog.typing.Processor
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    handler = _PrivateHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=level, force=True)
    # Warnings and the errors of threads would go to standard error with their texts.
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_error
    sys.unraisablehook = _log_unraisable_error
    # The MCP SDK logs requests that it refuses, with their inputs, through the root logger.
    logging.getLogger().addFilter(lambda record: record.levelno >= logging.ERROR)
    # A line for each request of each library would hide the lines about thousands of runs.
    for name in ("httpx", "botocore", "aiosqlite", "alembic", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # They log clients' mistakes, which the clients receive, too.
    logging.getLogger("mcp").setLevel(logging.ERROR)
    logging.getLogger("a2a").setLevel(logging.CRITICAL)


def _with_request_id(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    if (current := request_id.get()) is not None:
        event.setdefault("request_id", current)
    return event


def _with_run_fields(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    fields = _fields_with_trace()
    # A line about another run, such as the one that a tool of this run has cancelled.
    if fields is None or event.get("run_id", fields.run_id) != fields.run_id:
        return event
    for name in RunFields.__slots__:
        if (value := getattr(fields, name)) is not None:
            event.setdefault(name, value)
    return event


def _bounded(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Shorten long texts in the middle, so that no request makes large log lines."""
    for name, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_TEXT_CHARACTERS:
            half = _MAX_TEXT_CHARACTERS // 2
            event[name] = f"{value[:half]}\n[...]\n{value[-half:]}"
    return event


class _PrivateHandler(logging.StreamHandler[TextIO]):
    """Writes records to standard error, without texts of users and models."""

    def handle(self, record: logging.LogRecord) -> bool:
        changed = without_texts(record)
        return changed is not None and bool(super().handle(changed))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Report a record that can't be formatted; Python's own report has its arguments."""
        error = sys.exception()
        where = f"{record.pathname}:{record.lineno}"
        lines = "" if error is None else f"\n{traceback_without_texts(error)}"
        self.stream.write(f"A line of {where} could not be logged{lines}\n")


def without_texts(record: logging.LogRecord) -> logging.LogRecord | None:
    """The record without texts of users and models; None if the record is to be dropped."""
    top = record.name.partition(".")[0]
    is_own = top in _OWN_LOGGERS
    is_library = not is_own and record.pathname.startswith(_LIBRARY_FOLDERS)
    is_plain = not is_library or top in _PLAIN_LIBRARIES
    if not is_plain and record.levelno < logging.WARNING:
        return None
    if is_plain and not _has_errors(record):
        return record  # as the line of each run's end
    changed = logging.makeLogRecord(vars(record))
    if not is_plain:
        changed.msg = f"{_module_of(record)}:{record.lineno} logged a line, whose text is left out"
        changed.args = None
        for name in vars(record).keys() - _STANDARD_FIELDS:
            delattr(changed, name)
    elif isinstance(record.args, Mapping):
        changed.args = {name: _without_text(value) for name, value in record.args.items()}
    elif record.args:
        changed.args = tuple(map(_without_text, record.args))
    if isinstance(record.msg, BaseException):
        changed.msg = _without_text(record.msg)
    if record.exc_info and record.exc_info[1] is not None:
        # A field of JSON lines; the console shows it below the line.
        changed.__dict__["exception"] = traceback_without_texts(record.exc_info[1])
    changed.exc_info = changed.exc_text = changed.stack_info = None
    return changed


def _has_errors(record: logging.LogRecord) -> bool:
    """Whether the record may have an exception or a stack."""
    args = record.args if isinstance(record.args, tuple) else (record.args or {}).values()
    return bool(
        record.exc_info
        or record.exc_text
        or record.stack_info
        or any(isinstance(value, BaseException) for value in (record.msg, *args))
    )


def traceback_without_texts(error: BaseException) -> str:
    """The tracebacks of the error and its causes, as Python shows them, without their texts."""
    return "\n".join(_traceback_lines(error))


_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({})))


def _traceback_lines(error: BaseException) -> Iterator[str]:
    seen: set[int] = set()
    links = []
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        links.append(link)
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    for number, link in enumerate(reversed(links)):
        if number:
            yield "which led to:"
        yield "Traceback (most recent call last):"
        for frame in traceback.extract_tb(link.__traceback__):
            yield f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}'
        yield str(_without_text(link))
        if isinstance(link, BaseExceptionGroup):
            for member in link.exceptions:
                yield from (f"  | {line}" for line in _traceback_lines(member))


def _without_text(value: object) -> object:
    """An exception's type, with its text if that is known to hold no input or output."""
    if not isinstance(value, BaseException):
        return value
    kind = type(value)
    module = kind.__module__
    name = kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"
    if f"{module}.".startswith(_PLAIN_ERRORS):
        return f"{name}: {value}"
    if isinstance(value, OSError) and value.errno is not None:
        return f"{name}: {os.strerror(value.errno)}"
    return name


def _module_of(record: logging.LogRecord) -> str:
    for folder in _LIBRARY_FOLDERS:
        if record.pathname.startswith(folder):
            return record.pathname.removeprefix(folder)
    return record.module


def _log_thread_error(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "unknown"
        logging.getLogger("crew_capture.threads").error(
            "The thread %s ended", name, exc_info=args.exc_value
        )


def _log_unraisable_error(args: "sys.UnraisableHookArgs") -> None:
    logging.getLogger("crew_capture.threads").error(
        "An error could not be raised", exc_info=args.exc_value
    )


def _without_color_message(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    event.pop("color_message", None)  # uvicorn's copy of the message
    return event
