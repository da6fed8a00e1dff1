"""Runs crews and flows at scale. The only package that relies on CrewAI's internals.

Import it before CrewAI: it prepares the environment that CrewAI reads while it is imported. It
imports CrewAI itself only when `Engine` or `CrewModel` is first used.
"""

# ruff: noqa: E402
from app.engine.compat.environment import prepare_environment

prepare_environment()

from typing import TYPE_CHECKING

from app.engine.calls import CallObserver, GuardrailRound, ModelCall, ToolCall, characters
from app.engine.description import CrewDescription, CrewSource, TaskDescription
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
    ThreadsExhausted,
)
from app.engine.lazy_imports import lazy_imports
from app.engine.memory_store import MemoryChanges, MemoryEntry, MemoryStore
from app.engine.no_crews import NoCrews
from app.engine.results import (
    CrewResult,
    ExecutionMode,
    OnStep,
    OnToken,
    Paused,
    Replay,
    Review,
    RunObserver,
    StepFinished,
    TaskFinished,
    TaskOutcome,
    TaskStarted,
    Usage,
)
from crew_capture.secrets import SecretMissing, run_secret

if TYPE_CHECKING:
    from app.engine.compat.models import CrewModel
    from app.engine.engine import Engine, EngineMode
else:  # a type checker that saw `__getattr__` would accept any name
    __getattr__ = lazy_imports(
        __name__,
        {
            "CrewModel": "app.engine.engine",
            "Engine": "app.engine.engine",
            "EngineMode": "app.engine.engine",
        },
    )

__all__ = [
    "CallObserver",
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
    "EngineMode",
    "ExecutionMode",
    "GuardrailRound",
    "InputRefused",
    "MemoryChanges",
    "MemoryEntry",
    "MemoryStore",
    "ModelCall",
    "ModelError",
    "NoCrews",
    "NoResult",
    "OnStep",
    "OnToken",
    "Paused",
    "Replay",
    "Review",
    "RunFailed",
    "RunObserver",
    "SecretMissing",
    "StepFinished",
    "TaskDescription",
    "TaskFinished",
    "TaskOutcome",
    "TaskStarted",
    "ThreadsExhausted",
    "ToolCall",
    "Usage",
    "characters",
    "prepare_environment",
    "run_secret",
]
