"""Parts of the running service that handlers receive by name (dependency injection)."""

from typing import Any, TypeAlias

from litestar.datastructures import State
from litestar.di import NamedDependency, Provide

from app.runs import Memories, RunService

Runs: TypeAlias = NamedDependency[RunService]
"""The type of a handler's parameter `runs`."""

StoredMemories: TypeAlias = NamedDependency[Memories]
"""The type of a handler's parameter `memories`."""


def _part(name: str) -> Provide:
    def provide(state: State) -> Any:
        return state[name]

    return Provide(provide, sync_to_thread=False)


DEPENDENCIES = {
    name: _part(name)
    for name in (
        "runs",
        "batches",
        "memories",
        "schedules",
        "readiness",
        "renderer",
        "mcp_app",
        "a2a_app",
        "needs_key",
        "gauges",
        "api_keys",
        "operations",
        "sweeper",
    )
}
"""Names that every handler can have as parameters: attributes of the application's state."""
