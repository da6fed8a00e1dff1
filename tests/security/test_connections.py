"""Connections that a client leaves half used are closed, and never at another request's cost."""

import asyncio

import pytest

from app.cli import connections
from app.cli.connections import BoundedHttpProtocol
from tests.api.crews import Gate
from tests.serving import Connect, Running, Serve, one_answer

_START = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
_REQUEST = _START + b"\r\n"
# A run that takes long enough for more to arrive while it is under way.
_BODY = b'{"interest_area": "Food"}'
_RUN = (
    b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


@pytest.mark.parametrize("more", [b"\r", b"\n", b"\r\n", b"G", b"GET / HTTP/1.1\r\n"])
async def test_one_more_byte_after_an_answer_holds_no_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(_REQUEST)
    await one_answer(reader)
    writer.write(more)
    # It ends: with an answer (408) where a request has begun.
    rest = await asyncio.wait_for(reader.read(), 20)
    assert not rest or rest.startswith(b"HTTP/1.1 408 ")


async def test_bytes_that_drip_after_an_answer_hold_no_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(_REQUEST)
    await one_answer(reader)

    async def drip() -> None:
        while True:
            writer.write(b"\r\n")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    rest = await asyncio.wait_for(reader.read(), 20)
    assert not rest or rest.startswith(b"HTTP/1.1 408 ")
    dripping.cancel()


async def test_the_rest_of_a_body_that_was_answered_early_holds_no_connection(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(
        b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2000000\r\n\r\n"
    )
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 413 ")
    writer.write(b" ")
    assert await asyncio.wait_for(reader.read(), 20) == b""


async def test_the_rest_of_a_body_that_was_answered_early_is_no_header(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(
        b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2000000\r\n\r\n"
    )
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 413 ")
    writer.write(b" " * 2_000_000 + _REQUEST)
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(_START + b"X-Long: " + b"x" * 40_000, id="too large"),
        pytest.param(_START, id="never complete"),
    ],
)
async def test_a_pipelined_request_beyond_a_limit_leaves_the_first_its_answer(
    service: Running, connect: Connect, monkeypatch: pytest.MonkeyPatch, second: bytes
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.01)
    reader, writer = await connect()
    writer.write(_RUN)
    await writer.drain()
    writer.write(second)
    answer = await one_answer(reader)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"success":true' in answer
    rest = await asyncio.wait_for(reader.read(), 20)
    assert not rest or rest.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 431 "))
    assert len(await service.rows()) == 1


async def test_a_pipelined_request_that_never_completes_leaves_a_running_stream_whole(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = asyncio.Event()
    refuse = BoundedHttpProtocol._refuse

    def note(protocol: BoundedHttpProtocol, *arguments: str) -> None:
        refuse(protocol, *arguments)
        refused.set()

    monkeypatch.setattr(BoundedHttpProtocol, "_refuse", note)
    async with serve(gate.crews, engine="stock") as service:
        run = (await service.http.post("/api/runs", json={"crew": "idea"})).json()
        url = service.http.base_url
        reader, writer = await asyncio.open_connection(url.host, url.port)
        path = f"/api/runs/{run['run_id']}/events".encode()
        writer.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path)
        begin = await asyncio.wait_for(reader.readuntil(b"event: "), 20)
        assert begin.startswith(b"HTTP/1.1 200 ")
        monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.01)
        writer.write(_START)
        await asyncio.wait_for(refused.wait(), 20)
        gate.open.set()
        rest = await asyncio.wait_for(reader.read(), 20)
        writer.close()
    assert b"run.succeeded" in rest
    assert rest.endswith(b"\r\n0\r\n\r\n")
    assert b"HTTP/1.1 " not in rest


async def test_bytes_of_a_body_do_not_count_as_headers_of_the_next_request(
    connect: Connect,
) -> None:
    body = b'{"experience_summary": "%b"}' % (b"x" * 3900)
    large = b" " * 40_000 + body
    run = _RUN.replace(b"Content-Length: %d" % len(_BODY), b"Content-Length: %d" % len(large))
    run = run.removesuffix(_BODY) + large
    reader, writer = await connect()
    writer.write(run + _START)
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
    writer.write(b"\r\n")
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
