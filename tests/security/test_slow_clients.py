"""Clients that neither read nor send hold neither memory nor connections for long."""

import asyncio
import socket
from contextlib import closing

import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from app.api.middleware import request_limits
from app.cli import connections
from app.cli.connections import BoundedHttpProtocol
from app.cli.listener import open_listener
from tests.api.crews import Gate
from tests.runs.scripted import until
from tests.serving import JSON, Connect, Running, Serve, one_answer

_DESCRIPTION = b"GET /schema/openapi.json HTTP/1.1\r\nHost: localhost\r\n%b\r\n"
_BATCH = (
    b"POST /api/runs/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000000\r\n\r\n"
)


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"], ids=["open", "closing"])
async def test_a_client_that_reads_nothing_is_disconnected(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    monkeypatch.setattr(connections, "_SEND_SECONDS", 0.1)
    monkeypatch.setattr(connections, "_FIRST_CHECK_SECONDS", 0.1)
    lost = asyncio.Event()
    connection_lost = BoundedHttpProtocol.connection_lost

    def note(protocol: BoundedHttpProtocol, error: Exception | None) -> None:
        connection_lost(protocol, error)
        lost.set()

    monkeypatch.setattr(BoundedHttpProtocol, "connection_lost", note)
    reader, writer = await connect()
    # The reader stops at its limit, and then the kernel's buffers fill up.
    writer.write(_DESCRIPTION % b"" * 400 + _DESCRIPTION % last)
    await asyncio.wait_for(lost.wait(), 20)
    assert not reader.at_eof()


class _Transport:
    """A transport with data to send, which its client reads or not."""

    def __init__(self, unsent: list[int]) -> None:
        self.unsent = unsent
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.unsent.pop(0)

    def is_closing(self) -> bool:
        return True

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(
    ("unsent", "aborted"), [([300, 200, 199, 0], False), ([300, 200, 200], True)]
)
async def test_a_client_that_reads_slowly_stays(
    monkeypatch: pytest.MonkeyPatch, unsent: list[int], aborted: bool
) -> None:
    monkeypatch.setattr(connections, "_SEND_SECONDS", 0)
    monkeypatch.setattr(connections, "_FIRST_CHECK_SECONDS", 0)
    transport = _Transport(unsent)
    protocol = BoundedHttpProtocol.__new__(BoundedHttpProtocol)
    protocol.loop = asyncio.get_running_loop()
    protocol.transport = transport  # type: ignore[assignment]
    protocol.flow = FlowControl(transport)  # type: ignore[arg-type]
    protocol.pause_writing()

    async def is_decided() -> bool:
        return not unsent

    await until(is_decided)
    assert transport.aborted == aborted


async def test_a_part_of_a_body_is_read_when_the_previous_one_is_received(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand bodies that arrive at once are not read in one pass of the event loop."""
    is_paused: list[bool] = []
    data_received = BoundedHttpProtocol.data_received

    def note(protocol: BoundedHttpProtocol, data: bytes) -> None:
        data_received(protocol, data)
        if protocol.cycle.more_body and protocol.cycle.body:
            is_paused.append(protocol.flow.read_paused)

    monkeypatch.setattr(BoundedHttpProtocol, "data_received", note)
    body = b" " * 400_000 + b'{"crew": "idea"}'
    response = await service.http.post("/api/runs", content=body, headers=JSON)
    assert response.status_code == 202
    assert len(is_paused) > 5
    assert all(is_paused)


async def test_the_rest_of_a_body_that_has_its_response_is_not_read_at_once(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    data_received = BoundedHttpProtocol.data_received

    def note(protocol: BoundedHttpProtocol, data: bytes) -> None:
        read.append(len(data))
        data_received(protocol, data)

    monkeypatch.setattr(BoundedHttpProtocol, "data_received", note)
    monkeypatch.setattr(connections, "_FEW", 0)
    monkeypatch.setattr(connections, "_DEFER_SECONDS", 3600.0)
    reader, writer = await connect()
    writer.write(_BATCH.replace(b"1000000", b"30000000"))
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 413 ")
    writer.write(b" " * 30_000_000 + _DESCRIPTION % b"")

    shared = connections._SHARED[asyncio.get_running_loop()]

    async def is_deferred() -> bool:
        return bool(shared.deferred)

    await until(is_deferred)
    before = len(read)
    for _ in range(20):  # each would read more
        await asyncio.sleep(0)
    assert len(read) == before
    monkeypatch.setattr(connections, "_DEFER_SECONDS", 0.0)
    shared.read_deferred()
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
    assert sum(read) > 30_000_000


async def test_the_kernel_holds_little_of_a_connection() -> None:
    """By default, the memory for data that nothing reads grows to many megabytes."""
    listener = open_listener("127.0.0.1", 0)
    listener.listen()
    with closing(listener), closing(socket.create_connection(listener.getsockname())) as client:
        connection, _ = listener.accept()
        with closing(connection):
            for option in socket.SO_RCVBUF, socket.SO_SNDBUF:
                # Linux counts twice the memory, for its own records.
                assert connection.getsockopt(socket.SOL_SOCKET, option) <= 262_144
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            client.setblocking(False)
            assert client.send(b" " * 10_000_000) < 1_000_000


async def test_unfinished_bodies_share_a_bound(
    service: Running, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_limits, "_MAX_UNFINISHED_BYTES", 200_000)
    oldest, writer = await connect()
    writer.write(_BATCH + b" " * 90_000)
    await writer.drain()
    more = []
    answered = asyncio.ensure_future(one_answer(oldest))
    while not answered.done():  # each connection holds a part of a body
        reader, writer = await connect()
        writer.write(_BATCH + b" " * 90_000)
        await writer.drain()
        more.append(reader)
        await asyncio.wait([answered], timeout=0.05)
        assert len(more) < 50
    answer = await answered
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"this one is the oldest" in answer
    # Whole bodies are accepted meanwhile.
    response = await service.http.post("/api/runs", content=b'{"crew": "idea"}', headers=JSON)
    assert response.status_code == 202


async def test_an_accepted_run_survives_a_client_that_closes_its_sending_side(
    serve: Serve, gate: Gate
) -> None:
    async with serve(gate.crews, engine="stock") as service:
        url = service.http.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(
            b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )
        await asyncio.to_thread(gate.called.wait, 20)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 20) == b""  # it counts as disconnected
        writer.close()
        gate.open.set()

        async def has_succeeded() -> bool:
            return [row.status for row in await service.rows()] == ["succeeded"]

        await until(has_succeeded)
