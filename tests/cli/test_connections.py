"""Connections whose requests never come to an end: given up, and nobody else is held up."""

import asyncio
from contextlib import suppress

import msgspec
import pytest

from app.cli import connections
from app.cli.connections import BoundedHttpProtocol
from tests.serving import Connect, one_answer

START = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
_CHUNKED = (
    b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """What arrives until the service closes its side. It raises if the connection is reset."""
    return await asyncio.wait_for(reader.read(), 20)


@pytest.mark.parametrize("begin", [b"", b"GET", START, START + b"X-Slow: "])
async def test_headers_that_do_not_arrive_are_given_up(
    connect: Connect, begin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(begin)
    answer = await _rest(reader)
    assert answer.startswith(b"HTTP/1.1 408 ")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    assert msgspec.json.decode(body) == {
        "success": False,
        "error": "the headers did not arrive within 0.2 s",
        "error_type": "request_timeout",
    }


async def test_headers_that_drip_are_given_up(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(START)

    async def drip() -> None:
        while True:
            writer.write(b"X-Slow: 1\r\n")
            await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert (await _rest(reader)).startswith(b"HTTP/1.1 408 ")
    dripping.cancel()


async def test_the_next_request_of_a_connection_has_as_long_again(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(START + b"\r\n")
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
    await asyncio.sleep(0.4)  # between requests, its time is the server's keep-alive
    writer.write(START + b"\r\n")
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")
    writer.write(START)
    assert (await _rest(reader)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(b"X-Long: " + b"x" * 40_000, id="one that does not end"),
        pytest.param(b"X-One: 1\r\n" * 4_000, id="four thousand"),
    ],
)
async def test_headers_without_end_are_refused_before_they_end(
    connect: Connect, headers: bytes
) -> None:
    reader, writer = await connect()
    writer.write(START + headers)
    assert (await _rest(reader)).startswith(b"HTTP/1.1 431 ")


async def test_a_url_without_end_is_refused(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(b"GET /" + b"x" * 40_000)
    assert (await _rest(reader)).startswith(b"HTTP/1.1 431 ")


NOT_HTTP = [
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\r\n", id="TLS"),
    pytest.param(START + b"Transfer-Encoding: gzip\r\n\r\n", id="an unknown encoding"),
    pytest.param(START + b"Content-Length: one\r\n\r\n", id="no length"),
]


@pytest.mark.parametrize("request_", NOT_HTTP)
async def test_what_is_not_http_gets_an_error_like_others(
    connect: Connect, request_: bytes
) -> None:
    reader, writer = await connect()
    writer.write(request_)
    answer = await _rest(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2]) == {
        "success": False,
        "error": "the request is not valid HTTP",
        "error_type": "invalid_request",
    }


async def test_a_body_that_is_not_http_gets_an_error(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write(_CHUNKED + b"zz\r\n")
    assert (await _rest(reader)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("request_", NOT_HTTP)
async def test_a_response_is_whole_if_what_follows_its_request_is_not_http(
    connect: Connect, request_: bytes
) -> None:
    reader, writer = await connect()
    writer.write(_CHUNKED + b'19\r\n{"interest_area": "Food"}\r\n0\r\n\r\n' + request_)
    answer = await _rest(reader)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert msgspec.json.decode(body)["success"] is True


async def test_a_client_that_is_refused_while_it_sends_receives_why(connect: Connect) -> None:
    reader, writer = await connect()
    for _ in range(40):
        writer.write(b"X-Long: " + b"x" * 10_000)
        await asyncio.sleep(0.01)
    assert (await _rest(reader)).startswith(b"HTTP/1.1 400 ")
    async with asyncio.timeout(20):
        with suppress(ConnectionError):  # once the service has closed its other side
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)


async def test_requests_sent_at_once_are_answered_in_order(connect: Connect) -> None:
    reader, writer = await connect()
    writer.write((START + b"\r\n") * 3 + START.replace(b"live", b"none") + b"\r\n")
    answers = [await one_answer(reader) for _ in range(4)]
    assert [answer.split()[1] for answer in answers] == [b"200", b"200", b"200", b"404"]


async def test_a_body_may_need_longer_than_headers(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.2)
    reader, writer = await connect()
    writer.write(
        b"POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 26\r\n\r\n"
    )
    await asyncio.sleep(0.4)
    writer.write(b'{"interest_area": "Food"} ')
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 200 ")


async def test_one_read_brings_a_small_part_of_a_body(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    data_received = BoundedHttpProtocol.data_received

    def note(protocol: BoundedHttpProtocol, data: bytes) -> None:
        sizes.append(len(data))
        data_received(protocol, data)

    monkeypatch.setattr(BoundedHttpProtocol, "data_received", note)
    reader, writer = await connect()
    body = b"{" + b" " * 899_999
    writer.write(
        b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert (await one_answer(reader)).startswith(b"HTTP/1.1 400 ")
    assert sum(sizes) > len(body)
    assert max(sizes) <= 32_768
