"""Reasons to stop a run that CrewAI must not retry: it passes every HookAborted straight on."""

from crewai.hooks.dispatch import HookAborted


class RunCancelled(HookAborted):
    """The run was cancelled; this ends what is left of it in a thread."""

    def __init__(self) -> None:
        super().__init__("the run was cancelled")


class ReviewRequired(BaseException):
    """A human is to look at a task's output before the crew goes on.

    Not an Exception: nothing of CrewAI's must take it for a failure.
    """


class ContextTooLong(HookAborted):
    """The prompt is too long for the model, and the agent must not shorten it."""

    def __init__(self) -> None:
        super().__init__(
            "the prompt is longer than the model's context window, and the agent has "
            "respect_context_window=False"
        )


class ExitAttempted(HookAborted):
    """Code of the crew called exit(). That ends its run, never the process."""

    def __init__(self, attempt: BaseException) -> None:
        super().__init__(f"the crew tried to end the process ({attempt})")
