"""Connections that a client leaves half used are closed, and never at another request's cost."""

import asyncio
import gc
from typing import Any
from uuid import uuid4

import pytest

from app.api.middleware import request_limits
from app.cli import connections
from app.cli.connections import BoundedHttpProtocol
from app.file_limits import client_connections, raise_open_file_limit
from tests.api.crews import Gate
from tests.runs.scripted import until
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
    try:
        rest = await asyncio.wait_for(reader.read(), 20)
    except ConnectionResetError:  # a byte arrived after the end
        rest = b""
    assert not rest or rest.startswith(b"HTTP/1.1 408 ")
    dripping.cancel()


async def test_an_open_connection_keeps_nothing_of_its_last_request(connect: Connect) -> None:
    reader, writer = await connect()
    name = f"field-{uuid4()}"
    body = b'{"crew": "idea", "%b": [[], [], []]}' % name.encode()
    head = (
        b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    for _ in range(2):
        writer.write(head + body)
        assert (await one_answer(reader)).startswith(b"HTTP/1.1 400 ")
    await asyncio.sleep(0)
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is dict and name in each]
    assert not writer.is_closing()


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

    def note(protocol: BoundedHttpProtocol, *arguments: Any) -> None:
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


_INCOMPLETE = _RUN.removesuffix(b"}")


async def test_beyond_their_bound_the_connection_that_waits_longest_is_closed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedHttpProtocol, "max_connections", 4)
    opened = []
    for begun in (_INCOMPLETE, _START, _REQUEST, b""):
        reader, writer = await connect()
        writer.write(begun)
        if begun == _REQUEST:
            await one_answer(reader)
        opened.append(reader)
        await _accepted(len(opened))
    for longest in opened:
        reader, writer = await connect()
        writer.write(_REQUEST)
        assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
        assert await asyncio.wait_for(longest.read(), 20) == b""


async def _accepted(number: int) -> None:
    shared = connections._SHARED[asyncio.get_running_loop()]

    async def are_accepted() -> bool:
        return len(shared.waiting) == number

    await until(are_accepted)


async def test_if_all_connections_have_requests_under_way_a_new_one_is_refused(
    serve: Serve, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(gate.crews, engine="stock") as service:
        url = service.http.base_url
        responses = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(_RUN)
            responses.append((reader, writer))
        await asyncio.to_thread(gate.called.wait, 20)
        await _accepted(0)
        monkeypatch.setattr(BoundedHttpProtocol, "max_connections", 2)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        refused = await asyncio.wait_for(reader.read(), 20)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"too many connections" in refused
        writer.close()
        gate.open.set()
        for reader, writer in responses:
            assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
            writer.close()


async def test_1500_held_connections_end_and_leave_the_service_to_others(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_open_file_limit()
    if client_connections(0) < 4000:
        pytest.skip("the limit of open files is too low for both ends of 1,500 connections")
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 1.5)
    monkeypatch.setattr(request_limits, "_BODY_SECONDS", 1.5)
    url = service.http.base_url
    held = []
    for number in range(1500):
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write((_INCOMPLETE, _START, _REQUEST)[number % 3])
        if number % 3 == 2:
            await one_answer(reader)
            writer.write(b"\r")
        held.append((reader, writer))
    response = await service.http.post("/api/run", json={"interest_area": "Food"})
    assert response.status_code == 200
    for number, (reader, writer) in enumerate(held):
        if number % 3 == 0:  # idle then, so that uvicorn closes it
            rest = await one_answer(reader)
        else:
            rest = await asyncio.wait_for(reader.read(), 60)
        assert rest.startswith(b"" if number % 3 == 2 else b"HTTP/1.1 408 ")
        writer.close()
    assert len(await service.rows()) == 1
