"""Everything that can go wrong in the engine, as one tree.

Each message is safe to show to a user: it holds no path and no traceback.
"""

import re

_MAX_CHARACTERS = 300
_PATH = re.compile(r"(?<![\w:/.])(?:[A-Za-z]:\\|~?/)[\w.\-]+(?:[\\/][\w.\-]+)+")


class EngineError(Exception):
    """Anything that the engine raises."""


class CrewBroken(EngineError):
    """A crew can't be built or can't be served; the message is one line that says why."""


class CrewUnknown(EngineError):
    """No crew of this name was given to `Engine.start`."""


class InputRefused(EngineError):
    """An input that a flow can't take: names it, and what is wrong with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class EngineClosed(EngineError):
    """The engine is closed, or was never started."""


class RunFailed(EngineError):
    """A run ended without a result."""


class ModelError(RunFailed):
    """The model failed, after all retries: the provider's error, a timeout, no connection."""


class CrewFailed(RunFailed):
    """An exception inside the crew: its prompts, tools, guardrails, callbacks."""


class NoResult(RunFailed):
    """The crew ran, and nothing meaningful came back: empty answers only."""


def one_line(error: BaseException) -> str:
    """The class name and the head of the error's text, without paths, on one line."""
    text = _PATH.sub("...", " ".join(str(error).split()))
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS].rstrip() + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
