"""The errors of the engine, as one tree.

Each message is safe to show to a user: it holds no path and no traceback.
"""

import re
from collections.abc import Iterator

from crew_capture.secrets import redacted

_MAX_CHARACTERS = 300
_PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:\\|~?/)[\w.\-]+(?:[\\/][\w.\-]+)+")


class EngineError(Exception):
    """Anything that the engine raises."""


class CrewBroken(EngineError):
    """A crew can't be built or run; the message gives the reason in one line."""


class CrewUnknown(EngineError):
    """No crew of this name is registered."""


class InputRefused(EngineError):
    """An input that a flow can't accept, with the field and the problem."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class ThreadsExhausted(EngineError):
    """Too many threads of ended runs still execute: no run that needs a thread begins."""


class EngineClosed(EngineError):
    """The engine is closed, or was never started."""


class RunFailed(EngineError):
    """A run ended without a result."""


class ModelError(RunFailed):
    """The model failed, after all retries: the provider's error, a timeout, no connection."""


class CrewFailed(RunFailed):
    """An exception inside the crew: its prompts, tools, guardrails, callbacks."""


class NoResult(RunFailed):
    """The crew ran and returned no result: all answers were empty."""


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, and so on. CrewAI raises errors from themselves."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def one_line(error: BaseException) -> str:
    """The class name and the head of the error's text, without paths, on one line."""
    text = _PATH.sub("...", redacted(" ".join(str(error).split())))
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS].rstrip() + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
