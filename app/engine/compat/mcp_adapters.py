"""The MCP servers that a `@CrewBase` class connects to when its crew is built.

CrewAI closes them after a kickoff that succeeds. Crews that are built at start, and runs that fail,
would leave the programs of their servers behind.
"""

import contextlib
from typing import Any

from crewai import Crew


def closes_mcp_server(callback: Any) -> bool:
    """Whether this is the callback that CrewAI adds to every crew of a @CrewBase class."""
    return _closer(callback) is not None


def mcp_adapters(crew: Crew) -> list[Any]:
    """The adapters of a crew's class that have connected; `stop` may be called repeatedly."""
    closers = map(_closer, crew.after_kickoff_callbacks)
    instances = (getattr(closer, "__self__", None) for closer in closers if closer is not None)
    adapters = (getattr(instance, "_mcp_server_adapter", None) for instance in instances)
    return [adapter for adapter in adapters if adapter is not None]


def _closer(callback: Any) -> Any:
    """The bound method `close_mcp_server` behind a callback; None if it is another one."""
    if str(getattr(callback, "__module__", "")).split(".")[0] != "crewai":
        return None
    with contextlib.suppress(AttributeError, ValueError):
        for cell in callback.__closure__ or ():
            if getattr(cell.cell_contents, "__name__", "") == "close_mcp_server":
                return cell.cell_contents
    return None
