"""The connections to the MCP servers of agents (`mcps`), which are kept and shared by runs.

CrewAI connects before each task and for each call of a tool: it starts a program or a session each
time. Here a connection stays open for later runs of the same crew and caller, with the same
headers, arguments and environment. Callers never share one, because a server may keep what a
session has done.
"""

import asyncio
import contextlib
import contextvars
import re
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from crewai.mcp.client import MCPClient
from crewai.mcp.exceptions import MCPConnectionError
from crewai.mcp.transports.base import BaseTransport
from crewai.mcp.transports.http import HTTPTransport
from crewai.mcp.transports.sse import SSETransport
from crewai.mcp.transports.stdio import StdioTransport

from app.engine.compat.silence import silent
from app.engine.runtime.context import RunContext, current_run
from app.projects import Project, within
from crew_capture.secrets import run_secret

_T = TypeVar("_T")

McpHeaders = Mapping[str, Mapping[str, str]]
"""Headers by the URL of the server. `{NAME}` in a value is the secret NAME of the run."""

MAX_CONNECTIONS: Final = 32
_IDLE_SECONDS: Final = 300.0
_PING_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 10.0
_SECRET: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class McpScope:
    """The runs that may share connections: those of a crew for a caller.

    `project` is the crew's: a program starts in its folder.
    """

    connections: "McpConnections"
    crew: str
    caller: Hashable
    project: Project | None = None
    headers: McpHeaders = field(default_factory=dict)


class McpConnections:
    """The open connections of a process, at most `limit`. Used on the engine's event loop.

    At the limit, the connection that was idle for the longest time closes. While all are in use, a
    call waits. With a limit of 0, each call has a connection of its own.
    """

    def __init__(self, limit: int) -> None:
        self.limit: Final = limit
        self._kept: dict[Hashable, _Connection] = {}  # the least recently used first
        self._all: set[_Connection] = set()
        self._released = asyncio.Event()

    async def lease(
        self, key: Hashable, new_client: Callable[[], MCPClient], project: Project | None
    ) -> "_Connection":
        """An open connection, until `release`. Raises what CrewAI raises if there is none."""
        while True:
            while not (is_kept := key in self._kept) and not self._has_room():
                self._released.clear()
                await self._released.wait()
            connection = self._kept.pop(key) if is_kept else self._begin(new_client(), project)
            connection.begin_use()
            if self.limit:
                self._kept[key] = connection
            else:
                connection.retire()
            try:
                await asyncio.shield(connection.opened)
                if not is_kept or await connection.is_alive():
                    return connection
            except BaseException:
                self.release(connection)
                raise
            self._drop(connection)
            self.release(connection)

    def release(self, connection: "_Connection") -> None:
        """End the use of a leased connection. It closes after some minutes without any."""
        connection.end_use(expire=partial(self._drop, connection))
        self._released.set()

    async def aclose(self) -> None:
        """Close all connections, and end the programs that they have started."""
        for connection in self._all:
            connection.close()
        if self._all:
            tasks = [connection.task for connection in self._all]
            _, late = await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)
            for task in late:
                task.cancel()

    def _begin(self, client: MCPClient, project: Project | None) -> "_Connection":
        connection = _Connection(client, project)
        self._all.add(connection)
        connection.task.add_done_callback(lambda _: self._drop(connection))
        connection.task.add_done_callback(lambda _: self._all.discard(connection))
        return connection

    def _has_room(self) -> bool:
        if not self.limit or len(self._kept) < self.limit:
            return True
        idle = next((one for one in self._kept.values() if not one.users), None)
        if idle is not None:
            self._drop(idle)
        return idle is not None

    def _drop(self, connection: "_Connection") -> None:
        """Give the connection to no further run, and close it after its last call."""
        connection.retire()
        self._kept = {key: kept for key, kept in self._kept.items() if kept is not connection}
        self._released.set()


class _Connection:
    """A connection in a task of its own: the SDK requires that one task opens and closes it."""

    def __init__(self, client: MCPClient, project: Project | None) -> None:
        self.users = 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._retired = False
        self._closing = asyncio.Event()
        self._expiry: asyncio.TimerHandle | None = None
        # In no run's context, which the connection outlives.
        self.task = asyncio.get_running_loop().create_task(
            self._hold(project), name="MCP connection", context=contextvars.Context()
        )

    def begin_use(self) -> None:
        self.users += 1
        if self._expiry is not None:
            self._expiry.cancel()

    def end_use(self, *, expire: Callable[[], object]) -> None:
        self.users -= 1
        if self._retired:
            self.retire()
        elif not self.users:
            self._expiry = asyncio.get_running_loop().call_later(_IDLE_SECONDS, expire)

    def retire(self) -> None:
        """Close the connection when nothing uses it."""
        self._retired = True
        if not self.users:
            self.close()

    def close(self) -> None:
        """Close the connection now. Its calls end with an error."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._closing.set()

    async def is_alive(self) -> bool:
        """Whether the server answers: it may have ended, or have forgotten the session."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.call(_ping), _PING_SECONDS)
            return True
        return False

    async def call(self, method: Callable[..., Coroutine[Any, Any, _T]], *args: Any) -> _T:
        """Call a method of the client. Raises MCPConnectionError if the connection ends."""
        call = asyncio.ensure_future(method(self._client, *args))
        try:
            await asyncio.wait({call, self.task}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                return call.result()
        finally:
            call.cancel()
        raise MCPConnectionError("the connection to the MCP server has ended")

    async def _hold(self, project: Project | None) -> None:
        with within(project), silent():
            try:
                await self._client.connect()
            except BaseException as error:
                _fail(self.opened, error)
                return
            self.opened.set_result(None)
            # A transport that fails cancels this task.
            with contextlib.suppress(asyncio.CancelledError):
                await self._closing.wait()
            with contextlib.suppress(asyncio.CancelledError, Exception, BaseExceptionGroup):
                await self._client.disconnect()


class _SharedClient(MCPClient):
    """The client of one task or call of a tool. It leases a connection while it is connected."""

    def __init__(self, run: RunContext, scope: McpScope, transport: BaseTransport) -> None:
        # Without CrewAI's cache of tools: its key has no headers, so callers would share it.
        super().__init__(transport=transport)
        self._run = run
        self._scope = scope
        self._leased: _Connection | None = None

    @property
    def connected(self) -> bool:
        return self._leased is not None

    async def connect(self) -> "_SharedClient":
        if self._leased is None:
            key = (self._scope.crew, self._scope.caller, _server(self.transport))
            new_client = partial(MCPClient, transport=self.transport)
            self._leased = await self._run.await_on_loop(
                self._scope.connections.lease(key, new_client, self._scope.project)
            )
        return self

    async def disconnect(self) -> None:
        connection, self._leased = self._leased, None
        if connection is not None:
            self._run.call_on_loop(partial(self._scope.connections.release, connection))

    async def _list_tools_impl(self) -> list[dict[str, Any]]:
        """The server's tools; over another connection if the leased one ends meanwhile."""
        try:
            return await self._call(MCPClient._list_tools_impl)
        except Exception:
            leased = self._leased
            if leased is None or await self._run.await_on_loop(leased.is_alive()):
                raise
            await self.disconnect()
            await self.connect()
            return await self._call(MCPClient._list_tools_impl)

    async def _call_tool_impl(self, tool_name: str, arguments: dict[str, Any]) -> Any:
        return await self._call(MCPClient._call_tool_impl, tool_name, arguments)

    async def _call(self, method: Callable[..., Coroutine[Any, Any, _T]], *args: Any) -> _T:
        if self._leased is None:
            raise MCPConnectionError("the client is not connected to its MCP server")
        return await self._run.await_on_loop(self._leased.call(method, *args))


def mcp_client(*, transport: BaseTransport, **options: Any) -> MCPClient:
    """The client of a task or a call: in a run, it shares a connection. Raises SecretMissing."""
    run = current_run()
    scope = run.mcp_scope if run is not None else None
    if run is None or scope is None:
        return MCPClient(transport=transport, **options)
    if isinstance(transport, HTTPTransport | SSETransport):
        own = scope.headers.get(transport.url, {})
        transport.headers = transport.headers | {name: _filled(own[name]) for name in own}
    return _SharedClient(run, scope, transport)


def _filled(value: str) -> str:
    return _SECRET.sub(lambda found: run_secret(found[1]), value)


async def connect_by_http(self: HTTPTransport) -> HTTPTransport:
    """Open the transport in this task. It calls no server yet.

    Before Python 3.12, CrewAI opens it in another task, and so fails when it closes it.
    """
    from mcp.client.streamable_http import streamablehttp_client  # noqa: PLC0415 - slow

    if not self.connected:
        streams = streamablehttp_client(self.url, headers=self.headers or None)
        read, write, _ = await streams.__aenter__()
        self._transport_context = streams
        self._set_streams(read=read, write=write)
    return self


def _server(transport: BaseTransport) -> Hashable:
    """All that distinguishes a server and the rights that a connection has there."""
    kind = type(transport)
    if isinstance(transport, StdioTransport):
        return kind, transport.command, tuple(transport.args), _items(transport.env)
    if isinstance(transport, HTTPTransport):
        return kind, transport.url, transport.streamable, _items(transport.headers)
    if isinstance(transport, SSETransport):
        return kind, transport.url, _items(transport.headers)
    return kind, id(transport)


def _items(values: Mapping[str, str]) -> Hashable:
    return tuple(sorted(values.items()))


async def _ping(client: MCPClient) -> None:
    await client.session.send_ping()


def _fail(opened: asyncio.Future[None], error: BaseException) -> None:
    opened.set_exception(error)
    opened.exception()  # otherwise asyncio logs it if no run waits for it any more
