"""The MCP servers that a `@CrewBase` class connects to when its crew is built.

CrewAI closes them after a kickoff that succeeds. Crews that are built at start, and runs that fail,
would leave the programs of their servers behind.
"""

import contextlib
from typing import Any

from crewai import Crew


def closes_mcp_server(callback: Any) -> bool:
    """Whether this is the callback that CrewAI adds to every crew of a @CrewBase class."""
    return any(getattr(one, "__name__", "") == "close_mcp_server" for one in _contents(callback))


def mcp_adapters(crew: Crew) -> list[Any]:
    """The adapters of a crew's class that have connected; `stop` may be called repeatedly."""
    closers = filter(closes_mcp_server, crew.after_kickoff_callbacks)
    held = (one for closer in closers for one in _contents(closer))  # the instance is among these
    adapters = (getattr(one, "_mcp_server_adapter", None) for one in held)
    return [adapter for adapter in adapters if adapter is not None]


def _contents(callback: Any) -> list[Any]:
    """The values that a callback of CrewAI's own refers to; empty for another one."""
    if str(getattr(callback, "__module__", "")).split(".")[0] != "crewai":
        return []
    with contextlib.suppress(AttributeError, ValueError):
        return [cell.cell_contents for cell in callback.__closure__ or ()]
    return []
