"""Classify the error that ended a run: the model failed, the crew failed, or no result."""

from collections.abc import Iterator

from app.engine.errors import CrewFailed, EngineError, ModelError, NoResult, one_line
from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import ContextTooLong

# CrewAI's ValueErrors for empty answers to all attempts, and for runs without task output.
NOTHING_CAME_BACK = (
    "Invalid response from LLM call - None or empty.",
    "No valid task outputs available to create crew output.",
    "No task outputs available to create crew output.",
)


def failure_of(error: BaseException, run: RunContext) -> BaseException:
    """The error that the engine raises for `error`, which ended `run`."""
    if run.observer_error is not None:
        return run.observer_error
    chain = list(_chain(error))
    if any(isinstance(link, EngineError) for link in chain[:1]):
        return error
    if any(isinstance(link, ContextTooLong) for link in chain):
        return ModelError(str(error))
    for link in chain:
        if any(link is known for known in run.model_errors):
            return ModelError(f"the model failed: {one_line(link)}")
    if isinstance(error, ValueError) and str(error) in NOTHING_CAME_BACK:
        return NoResult("the crew gave no result: every answer was empty")
    return CrewFailed(one_line(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
