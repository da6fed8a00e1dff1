"""What can be wrong with a request for a run."""

from collections.abc import Sequence


class RunError(Exception):
    """The base of this package's errors."""


class InvalidInput(RunError):
    """An input can't be taken; `field` names it, the message says what would be."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class MissingInputs(InvalidInput):
    """Inputs that the crew needs were not given; `names` are all of them."""

    def __init__(self, names: Sequence[str], problem: str) -> None:
        super().__init__(", ".join(names), problem)
        self.names = names


class UnknownCrew(RunError):
    """No crew of this name is served."""


class Overloaded(RunError):
    """As many runs wait as may wait; nothing was accepted."""


class LimitReached(RunError):
    """This caller has as much as it may have; nothing was accepted."""

    def __init__(self, problem: str, *, limit: int, retry_after_seconds: int) -> None:
        super().__init__(problem)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class ShuttingDown(RunError):
    """The service takes no more runs; nothing was accepted."""


class RunMoved(RunError):
    """The run is accepted, but this process doesn't carry it to its end; another does."""


class UnknownRun(RunError):
    """There is no such run."""


class NotAwaitingHuman(RunError):
    """The run does not wait for a human, or not about that task."""


class AwaitingHuman(RunError):
    """The run does not go on until a human has said what to do."""


class UnknownOutput(RunError):
    """The run has no output of this name, or not yet."""


class RunUnsettled(RunError):
    """The run is not settled yet, and what was asked for needs that."""


class IdempotencyConflict(RunError):
    """The idempotency key was used before for another request; nothing was accepted."""
