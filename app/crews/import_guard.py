"""Guards the import of a project's code: kickoffs are caught, and agents get no model yet.

Programs often end with `crew.kickoff()` at module level. The service builds and runs crews itself,
with the deployment's model for agents that name none.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from app.crews.discovery import KICKOFFS


class KickedOff(BaseException):
    """Code kicks off `crew` where it is imported. Not an Exception: code must not handle it."""

    def __init__(self, crew: Any, inputs: Mapping[str, Any]) -> None:
        super().__init__("kicks off a crew where it is imported")
        self.crew = crew
        self.inputs = inputs


@contextmanager
def guarded_import() -> Iterator[None]:
    """Within this, the kickoff of a crew, a flow or an agent raises KickedOff.

    An agent that names no model gets a `PendingModel`.
    """
    from crewai import Agent, Crew  # noqa: PLC0415 - the import of CrewAI lasts seconds
    from crewai.flow.flow import Flow  # noqa: PLC0415
    from crewai.utilities import llm_utils  # noqa: PLC0415

    from app.projects.pending_model import PendingModel  # noqa: PLC0415

    replaced = [
        (owner, name, vars(owner)[name])
        for owner in (Crew, Flow, Agent)
        for name in KICKOFFS
        if name in vars(owner)
    ]
    for owner, name, _ in replaced:
        setattr(owner, name, _raise_kicked_off)
    fallback = llm_utils._llm_via_environment_or_fallback
    llm_utils._llm_via_environment_or_fallback = PendingModel  # type: ignore[assignment]
    try:
        yield
    finally:
        llm_utils._llm_via_environment_or_fallback = fallback
        for owner, name, own in replaced:
            setattr(owner, name, own)


def _raise_kicked_off(self: Any, inputs: Any = None, *_: Any, **options: Any) -> Any:
    inputs = options.get("inputs", inputs)
    raise KickedOff(self, inputs if isinstance(inputs, Mapping) else {})
