"""A network between a process and a server, which can lose all packets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

Address = str | tuple[str, int]


class Link:
    """Forwards connections to a server: a host and a port, or the path of a socket.

    While it is cut, it forwards no byte either way, and closes no connection, as a network does
    that drops packets. What was sent meanwhile arrives afterwards.
    """

    def __init__(self, server: Address) -> None:
        self._server = server
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self.port = 0

    def cut(self) -> None:
        """Begin to drop all packets."""
        self._is_whole.clear()

    def restore(self) -> None:
        """Forward packets again."""
        self._is_whole.set()

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection until one of its ends closes it."""
        await self._is_whole.wait()
        if isinstance(self._server, str):
            opened = asyncio.open_unix_connection(self._server)
        else:
            opened = asyncio.open_connection(*self._server)
        with suppress(OSError):
            server_reader, server_writer = await opened
            await asyncio.wait(
                [
                    asyncio.create_task(self._forward(reader, server_writer)),
                    asyncio.create_task(self._forward(server_reader, writer)),
                ]
            )
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._is_whole.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def linked(server: Address) -> AsyncIterator[Link]:
    """A link to a server, on a port of its own."""
    link = Link(server)
    listener = await asyncio.start_server(link.connect, "127.0.0.1", 0)
    link.port = listener.sockets[0].getsockname()[1]
    try:
        yield link
    finally:
        listener.close()
        link.restore()
