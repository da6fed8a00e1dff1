"""The secrets of a run: values for its tools, MCP servers and models, which come with the request.

They are in no prompt, call record, event, trace or log line. The engine removes their values from
the results and errors of tools, and from the error of the run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_MIN_REDACTED_CHARACTERS: Final = 6
_AT_START: Final = "no secret: no run executes"

_secrets: ContextVar[Mapping[str, str] | None] = ContextVar("crew_capture_secrets", default=None)
_is_building_at_start: ContextVar[bool] = ContextVar("crew_capture_at_start", default=False)


class SecretMissing(LookupError):
    """The run has no secret of this name, or no run executes."""


def run_secret(name: str, default: str | None = None) -> str:
    """The secret of the run that executes, for its tools and for the factory of its crew.

    While the service starts, it builds each crew once without a run: the factory then gets
    `default`, or a text that is no secret. A thread that a tool starts itself belongs to no run.

    Raises SecretMissing: the run has none of this name, and there is no default.
    """
    secrets = _secrets.get()
    if secrets is not None and name in secrets:
        return secrets[name]
    if default is not None:
        return default
    if secrets is None and _is_building_at_start.get():
        return _AT_START
    raise SecretMissing(f"the run has no secret {name}; send it in the field secrets of the run")


@contextmanager
def secrets_of_run(secrets: Mapping[str, str]) -> Iterator[None]:
    """Within this, `run_secret` returns these."""
    token = _secrets.set(secrets)
    try:
        yield
    finally:
        _secrets.reset(token)


@contextmanager
def building_at_start() -> Iterator[None]:
    """Within this, `run_secret` returns a text that is no secret."""
    token = _is_building_at_start.set(True)
    try:
        yield
    finally:
        _is_building_at_start.reset(token)


def redacted(text: str) -> str:
    """The text with the names of the run's secrets instead of their values.

    Values of less than 6 characters stay: they occur in other words.
    """
    for name, value in (_secrets.get() or {}).items():
        if len(value) >= _MIN_REDACTED_CHARACTERS:
            text = text.replace(value, f"[{name}]")
    return text
