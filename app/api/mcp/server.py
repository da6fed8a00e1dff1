"""The MCP server of the SDK, which runs from a client's first request on."""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import Context
from types import SimpleNamespace
from typing import Any

from mcp.server.lowlevel import server as sdk
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from app.api.mcp.handlers import CrewTools
from app.runs import RunService

# The SDK collects warnings while it handles a request, by replacing the process's hook. Requests
# overlap, so that all later warnings would end up in the list of a finished request.
sdk.warnings = SimpleNamespace(catch_warnings=lambda record: nullcontext([]))  # type: ignore[assignment, attr-defined]


class McpServer:
    """Runs the SDK's application in a task of its own, which the SDK requires, until `aclose`."""

    def __init__(self, runs: RunService) -> None:
        self._manager = StreamableHTTPSessionManager(CrewTools(runs).server, stateless=True)
        self._has_begun = asyncio.Event()
        # Not in the context of the first request.
        self._task = asyncio.create_task(self._run(), name="MCP server", context=Context())

    async def application(self) -> Callable[..., Any]:
        """The application, once it runs."""
        await self._has_begun.wait()
        return self._manager.handle_request

    async def aclose(self) -> None:
        """End the application and the requests that it handles."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with self._manager.run():
            self._has_begun.set()
            await asyncio.Event().wait()
