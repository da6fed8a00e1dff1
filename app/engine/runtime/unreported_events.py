"""Events of CrewAI are not built in runs without listeners.

CrewAI builds six events per task, pydantic models with a random identifier each, before `emit`
looks for listeners. The methods that build these pass them to `emit` and read nothing of them.
"""

from collections.abc import Callable
from typing import Any, Final

from crewai import task
from crewai.agent import core
from crewai.agents import agent_executor

from app.engine.runtime.context import current_run


def _unless_suppressed(kind: Callable[..., Any]) -> Callable[..., Any]:
    """The constructor of an event, which returns None where `emit` suppresses events."""

    def build(**fields: Any) -> Any:
        run = current_run()
        return None if run is not None and run.suppress_events else kind(**fields)

    return build


_BUILT: Final = (
    (task, "TaskStartedEvent"),
    (task, "TaskCompletedEvent"),
    (core, "AgentExecutionStartedEvent"),
    (core, "AgentExecutionCompletedEvent"),
    (agent_executor, "AgentLogsStartedEvent"),
    (agent_executor, "AgentLogsExecutionEvent"),
)

UNREPORTED: Final[tuple[tuple[Any, str, Any], ...]] = tuple(
    (module, name, _unless_suppressed(getattr(module, name))) for module, name in _BUILT
)
"""The constructors of events, as CrewAI's modules name them, and their replacements."""
