"""Exceptions that stop a run without a retry: CrewAI never retries a HookAborted."""

from crewai.hooks.dispatch import HookAborted


class RunCancelled(HookAborted):
    """The run was cancelled; this ends its remaining work in a thread."""

    def __init__(self) -> None:
        super().__init__("the run was cancelled")


class ReviewRequired(BaseException):
    """A human must review a task's output before the crew continues.

    Not an Exception, so that CrewAI does not handle it as a failure.
    """


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
    """The crew's code called exit(), which ends its run, never the process."""

    def __init__(self, attempt: BaseException) -> None:
        super().__init__(f"the crew tried to end the process ({attempt})")
