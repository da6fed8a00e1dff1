"""The listening socket: bound early, and refused in one line."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.config import STARTUP_FAILURE

from app.cli.listener import AddressUnusable, open_listener, url_of
from app.cli.server import Server


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("203.0.113.9", "203.0.113.9:8000: this machine has no such address: correct HOST"),
        ("no.such.host.invalid", "the host is unknown: correct HOST"),
    ],
)
def test_an_address_that_cannot_be_bound_is_refused(host: str, expected: str) -> None:
    with pytest.raises(AddressUnusable, match=expected):
        open_listener(host, 8000)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressUnusable, match=f"127.0.0.1:{port}: another program uses it"):
            open_listener("127.0.0.1", port)


async def _empty_app(scope: Any, receive: Any, send: Any) -> None:
    """Nothing is requested of it."""


async def test_serving_is_logged_when_requests_are_accepted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    listener = open_listener("127.0.0.1", 0)
    url = url_of(listener)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*listener.getsockname())
    server = Server(uvicorn.Config(_empty_app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([listener]))
    while f"Serving on {url}" not in caplog.text:
        assert not serving.done()
        await asyncio.sleep(0)
    _, writer = await asyncio.open_connection(*listener.getsockname())
    writer.close()
    server.should_exit = True
    await serving


def test_several_connections_are_accepted_in_a_pass_of_the_event_loop() -> None:
    """Other clients would wait for as many passes as one client has opened connections."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(_passes_to_accept(64)) < 32


async def _passes_to_accept(connections: int) -> int:
    listener = open_listener("127.0.0.1", 0)
    server = Server(uvicorn.Config(_empty_app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([listener]))
    while not server.started:
        assert not serving.done()
        await asyncio.sleep(0)
    clients = [socket.create_connection(listener.getsockname()) for _ in range(connections)]
    passes = 0
    while len(server.server_state.connections) < connections:
        await asyncio.sleep(0)
        passes += 1
    for client in clients:
        client.close()
    server.should_exit = True
    await serving
    return passes


async def test_of_two_starts_on_one_port_the_later_ends_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Until one listens, both can bind it."""
    later = open_listener("127.0.0.1", 0)
    port = later.getsockname()[1]
    with open_listener("127.0.0.1", port) as first:
        first.listen()
        config = uvicorn.Config(_empty_app, port=port, lifespan="off", log_config=None)
        with pytest.raises(SystemExit) as ended:
            await Server(config).serve([later])
    later.close()
    assert ended.value.code == STARTUP_FAILURE
    assert f"can't listen on 127.0.0.1:{port}: another program uses it" in caplog.text
