"""The errors of requests about runs."""

from collections.abc import Sequence
from uuid import UUID


class RunError(Exception):
    """The base of this package's errors."""


class InvalidInput(RunError):
    """An input is refused; `field` names it, `problem` says what is wrong and what is allowed."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def within(self, prefix: str) -> "InvalidInput":
        """The same error for a field whose name begins with `prefix`."""
        return InvalidInput(prefix + self.field, self.problem)


class InvalidInputs(InvalidInput):
    """Several inputs are refused; its text has all errors, `field` and `problem` are the first."""

    def __init__(self, errors: Sequence[InvalidInput]) -> None:
        super().__init__(errors[0].field, errors[0].problem)
        self.args = ("; ".join(map(str, errors)),)
        self._errors = errors

    def within(self, prefix: str) -> InvalidInput:
        return InvalidInputs([error.within(prefix) for error in self._errors])


class MissingInputs(InvalidInput):
    """Required inputs are missing; `names` are all of them."""

    def __init__(self, names: Sequence[str], problem: str) -> None:
        super().__init__(", ".join(names), problem)
        self.names = names


class UnknownCrew(RunError):
    """No crew of this name is registered."""


class Overloaded(RunError):
    """The queue is full; nothing was accepted."""


class LimitReached(RunError):
    """The caller has reached its quota; nothing was accepted."""

    def __init__(self, problem: str, *, limit: int, retry_after_seconds: int) -> None:
        super().__init__(problem)
        self.limit = limit
        self.retry_after_seconds = retry_after_seconds


class BudgetExceeded(RunError):
    """A model call would exceed a budget: it is not made, and ends its run."""


class ShuttingDown(RunError):
    """The process stops and accepts no more runs; nothing was accepted."""


class RunMoved(RunError):
    """The run is accepted, but it does not end in this process: another one executes it.

    `run_id` is where to look for its result.
    """

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"run {run_id} is accepted and continues in another process")
        self.run_id = run_id


class UnknownRun(RunError):
    """There is no such run, or it is another owner's."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"there is no run {run_id}")


class UnknownBatch(RunError):
    """There is no such batch, or it is another owner's."""

    def __init__(self, batch_id: UUID) -> None:
        super().__init__(f"there is no batch {batch_id}")


class NotAwaitingHuman(RunError):
    """The run does not await a human's review, or awaits that of another task."""


class AwaitingHuman(RunError):
    """The run continues only after a human's review."""

    def __init__(self, run_id: UUID) -> None:
        super().__init__(f"run {run_id} waits for a human")
        self.run_id = run_id


class UnknownOutput(RunError):
    """The run has no output of this name, or does not have it yet."""


class NotRetryable(RunError):
    """The run neither failed nor was cancelled, or it lacks what a retry needs."""

    def __init__(
        self,
        run_id: UUID,
        status: str,
        reason: str = "only a failed or cancelled run is retried",
    ) -> None:
        super().__init__(f"run {run_id} is {status}: {reason}")
        self.run_id = run_id


class OutputElsewhere(RunError):
    """The task is finished, and only the process that executes its run can read the output."""

    def __init__(self, run_id: UUID, name: str) -> None:
        super().__init__(
            f"{name}: stored by the process that executes run {run_id}; "
            "available here when the run has ended"
        )
        self.run_id = run_id


class RunUnsettled(RunError):
    """The run is not settled yet, which the request requires."""

    def __init__(self, run_id: UUID, status: str) -> None:
        super().__init__(f"run {run_id} is {status}: cancel it first")
        self.run_id = run_id


class IdempotencyConflict(RunError):
    """The idempotency key was used before for another request; nothing was accepted.

    `run_id` is the run of that request.
    """

    def __init__(self, run_id: UUID) -> None:
        super().__init__("Idempotency-Key: used before for another request")
        self.run_id = run_id
