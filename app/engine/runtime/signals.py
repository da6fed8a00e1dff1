"""Exceptions that stop a run without a retry: CrewAI never retries a HookAborted."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from crewai.hooks.dispatch import HookAborted


class RunCancelled(HookAborted):
    """The run was cancelled; this ends its remaining work in a thread."""

    def __init__(self) -> None:
        super().__init__("the run was cancelled")


class RunStopped(HookAborted):
    """The observer of a run's calls has ended the run: no further call begins."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(error))


class Interruption(BaseException):
    """The engine interrupts CrewAI's code. Not an Exception: CrewAI must not handle it."""


class ReviewRequired(Interruption):
    """A human must review a task's output before the crew continues."""


class ContextTooLong(HookAborted):
    """The prompt is too long for the model, and the agent must not shorten it."""

    def __init__(self) -> None:
        super().__init__(
            "the prompt is longer than the model's context window, and the agent has "
            "respect_context_window=False"
        )


class OutputTooLong(HookAborted):
    """A text of a run exceeds MAX_OUTPUT_CHARS."""

    def __init__(self, name: str, chars: int, max_chars: int) -> None:
        super().__init__(
            f"the output {name} has {chars} characters, and MAX_OUTPUT_CHARS={max_chars}"
        )


class ExitAttempted(HookAborted):
    """The crew's code called exit() or the like, which ends its run, never the process."""

    def __init__(self, attempt: BaseException) -> None:
        kind = type(attempt).__name__
        super().__init__(f"the crew tried to end the process ({kind}: {attempt})")


@contextmanager
def exits_contained(*, may_be_cancelled: bool = False) -> Iterator[None]:
    """Around code of a crew: raise ExitAttempted for any exception that is no Exception.

    On an event loop, cancellation is not the crew's doing: set `may_be_cancelled` there.
    """
    try:
        yield
    except (Exception, Interruption):
        raise
    except BaseException as attempt:
        if may_be_cancelled and isinstance(attempt, asyncio.CancelledError):
            raise
        raise ExitAttempted(attempt) from attempt
