"""No run sends traces to CrewAI's platform, whatever `tracing` of its crew or flow says.

CREWAI_TRACING_ENABLED=false is not enough: `tracing=True` overrides it. The run would collect its
prompts and answers, request an upload, and log a line when it discards them.
"""

from typing import Any, Final

from crewai import crew, execution
from crewai.flow import runtime


def _never(**_: Any) -> bool:
    return False


def _always(*_: Any) -> bool:
    return True


UNTRACED: Final[tuple[tuple[Any, str, Any], ...]] = (
    (execution, "_tracing_disabled", _always),
    (crew, "should_enable_tracing", _never),
    (runtime, "should_enable_tracing", _never),
)
"""The functions that decide whether to trace, and their replacements."""
