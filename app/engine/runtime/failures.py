"""Classify the error that ended a run: the model failed, the crew failed, or no result."""

from app.engine.errors import CrewFailed, EngineError, ModelError, NoResult, chain_of, one_line
from app.engine.llm.transport import AnswerTooLong
from app.engine.runtime.context import RunContext
from app.engine.runtime.signals import ContextTooLong, OutputTooLong

# CrewAI's ValueErrors for empty answers to all attempts, and for runs without task output.
NOTHING_CAME_BACK = (
    "Invalid response from LLM call - None or empty.",
    "No valid task outputs available to create crew output.",
    "No task outputs available to create crew output.",
)
# Their messages are complete.
_STOPS = (AnswerTooLong, ContextTooLong, OutputTooLong)


def failure_of(error: BaseException, run: RunContext) -> BaseException:
    """The error that the engine raises for `error`, which ended `run`."""
    if (own := run.observer_error or run.stop_error) is not None:
        return own
    chain = list(chain_of(error))
    if isinstance(error, EngineError):
        return error
    for link in chain:
        if isinstance(link, _STOPS):
            kind = CrewFailed if isinstance(link, OutputTooLong) else ModelError
            return kind(str(link))
    for link in chain:
        if any(link is known for known in run.model_errors):
            return ModelError(f"the model failed: {one_line(link)}")
    if isinstance(error, ValueError) and str(error) in NOTHING_CAME_BACK:
        return NoResult("the crew gave no result: every answer was empty")
    return CrewFailed(one_line(error))
