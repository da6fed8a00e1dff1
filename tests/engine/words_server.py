"""MCP servers whose tool repeats a text, and the answers of a model that calls it."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from crewai.mcp import MCPServerHTTP, MCPServerStdio
from mcp.server.fastmcp import Context, FastMCP

from tests.engine.recording import Request, hashed
from tests.servers import free_ports

PROGRAM = """
import os
from mcp.server.fastmcp import FastMCP
server = FastMCP("words", port=int(os.environ.get("PORT", "0")), log_level="CRITICAL")
@server.tool()
def repeat(text: str) -> str:
    "Repeat a text."
    return f"{text} {text}, process={os.getpid()}" if "NAMED" in os.environ else f"{text} {text}"
server.run("streamable-http" if "PORT" in os.environ else "stdio")
"""
WORDS = MCPServerStdio(command=sys.executable, args=["-c", PROGRAM])


@contextlib.contextmanager
def words_by_http() -> Iterator[MCPServerHTTP]:
    """The same program by streamable HTTP, until the end of the block."""
    port = free_ports(1)[0]
    command = [sys.executable, "-c", PROGRAM]
    server = subprocess.Popen(command, env={**os.environ, "PORT": str(port)})
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield MCPServerHTTP(url=f"http://127.0.0.1:{port}/mcp")
    finally:
        server.terminate()
        server.wait()


def repeats(request: Request, nth: int) -> Any:
    """Call the server's tool with the topic, then answer with its result."""
    if (tools := request.tools) and request.turn == 0:
        topic = re.findall(r"write about (\S+) in", str(request.messages))[0]
        call = {"name": tools[0]["function"]["name"], "arguments": f'{{"text": "{topic}"}}'}
        return [{"id": "call_0", "type": "function", "function": call}]
    return f"{hashed(request, nth)}: {request.messages[-1]['content']}"


class RemoteWords:
    """The same by streamable HTTP; its tool's results have the token that it received."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/mcp"
        self.sessions: set[str | None] = set()
        self.tokens: list[str | None] = []
        server = FastMCP("remote", port=port)

        @server.tool()
        def repeat(text: str, context: Context) -> str:  # type: ignore[type-arg]
            """Repeat a text."""
            headers = context.request_context.request.headers
            self.sessions.add(headers.get("mcp-session-id"))
            self.tokens.append(headers.get("authorization"))
            return f"{text} {text} for {headers.get('authorization', 'anyone')}"

        config = uvicorn.Config(server.streamable_http_app(), port=port, log_level="critical")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    @property
    def config(self) -> MCPServerHTTP:
        return MCPServerHTTP(url=self.url)

    def start(self) -> None:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()

    def stop(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()


@contextlib.contextmanager
def remote_words(port: int | None = None) -> Iterator[RemoteWords]:
    """The server, which executes until the end of the block."""
    remote = RemoteWords(port or free_ports(1)[0])
    remote.start()
    try:
        yield remote
    finally:
        remote.stop()
