"""How a crew runs at scale. The only package that knows CrewAI's insides.

Importing it prepares the environment before CrewAI is imported: import it before any crew.
"""

# ruff: noqa: E402
from app.engine.compat.environment import prepare_environment

prepare_environment()

from app.pins import changed, crewai

try:
    from app.engine.compat.models import CrewModel
    from app.engine.description import CrewDescription, CrewSource, TaskDescription
    from app.engine.engine import Engine, Mode
    from app.engine.errors import (
        CrewBroken,
        CrewFailed,
        CrewUnknown,
        EngineClosed,
        EngineError,
        InputRefused,
        ModelError,
        NoResult,
        RunFailed,
    )
    from app.engine.results import (
        CrewResult,
        OnStep,
        Paused,
        Replay,
        Review,
        RunObserver,
        StepFinished,
        TaskFinished,
        TaskOutcome,
        TaskStarted,
        Usage,
        Way,
    )
except Exception as error:
    # A release of CrewAI that takes a name away: say all that changed, not just the first.
    if not (lines := changed(crewai.PINS)):
        raise
    text = "\n".join(["the engine does not fit this release of CrewAI:", *lines])
    raise ImportError(text, name="crewai") from error

__all__ = [
    "CrewBroken",
    "CrewDescription",
    "CrewFailed",
    "CrewModel",
    "CrewResult",
    "CrewSource",
    "CrewUnknown",
    "Engine",
    "EngineClosed",
    "EngineError",
    "InputRefused",
    "Mode",
    "ModelError",
    "NoResult",
    "OnStep",
    "Paused",
    "Replay",
    "Review",
    "RunFailed",
    "RunObserver",
    "StepFinished",
    "TaskDescription",
    "TaskFinished",
    "TaskOutcome",
    "TaskStarted",
    "Usage",
    "Way",
    "prepare_environment",
]
