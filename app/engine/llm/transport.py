"""httpx transports that send the OpenAI SDK's requests over the pool."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from crewai.hooks.dispatch import HookAborted
from openai import APIConnectionError, APITimeoutError
from yarl import URL

from app.engine.llm.answer_limit import data_of
from app.engine.llm.pool import (
    HttpReply,
    HttpRequest,
    HttpStream,
    ModelPool,
    PoolError,
    PoolLimitExceeded,
    PoolTimeout,
)

# These describe the bytes on the connection, which the pool has decoded.
_CONNECTION_HEADERS = frozenset({"content-encoding", "transfer-encoding", "content-length"})
# Shorter ones are placeholders such as "none", and ordinary words of an error message.
_SECRET_CHARACTERS = 8


@dataclass(frozen=True)
class Endpoint:
    """The server of model calls, and their limits: all `attempts` within `timeout_seconds`.

    `client_options` are the parameters of the SDK's clients: key, address, headers and so on.
    """

    client_options: Mapping[str, Any] = field(repr=False)
    timeout_seconds: float
    attempts: int


class AnswerTooLong(HookAborted):
    """A model's answer exceeds MAX_OUTPUT_CHARS. CrewAI never repeats a call that raises this."""


@contextmanager
def as_sdk_errors(request: httpx.Request) -> Iterator[None]:
    """Raise the pool's errors as the SDK's connection errors, which CrewAI handles.

    A response beyond the limit raises AnswerTooLong.
    """
    try:
        yield
    except PoolLimitExceeded as error:
        raise AnswerTooLong(str(error)) from error
    except PoolTimeout as error:
        raise APITimeoutError(request) from error
    except PoolError as error:
        raise APIConnectionError(message=str(error), request=request) from error


def httpx_response(reply: HttpReply, request: httpx.Request, endpoint: Endpoint) -> httpx.Response:
    return httpx.Response(
        reply.status,
        request=request,
        headers=_body_headers(reply.headers),
        content=_without_key(reply.body, endpoint) if reply.status >= 400 else reply.body,
    )


def _body_headers(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [
        (name, value) for name, value in headers.items() if name.lower() not in _CONNECTION_HEADERS
    ]


def _without_key(body: bytes, endpoint: Endpoint) -> bytes:
    """The body without the API key: some servers repeat a key that they reject."""
    key = endpoint.client_options.get("api_key")
    if isinstance(key, str) and len(key) >= _SECRET_CHARACTERS:
        return body.replace(key.encode(), b"***")
    return body


class AsyncTransport(httpx.AsyncBaseTransport):
    """Sends the SDK's requests over the pool."""

    def __init__(self, pool: ModelPool, endpoint: Endpoint) -> None:
        self._pool = pool
        self._endpoint = endpoint

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        posted = _pool_request(request, await request.aread(), self._endpoint)
        if not _is_streamed(request):
            with as_sdk_errors(request):
                reply = await self._pool.fetch(posted)
            return httpx_response(reply, request, self._endpoint)
        async with AsyncExitStack() as opened:
            with as_sdk_errors(request):
                stream = await opened.enter_async_context(self._pool.stream(posted))
                if stream.status >= 400:
                    reply = HttpReply(stream.status, stream.headers, await stream.read())
                    return httpx_response(reply, request, self._endpoint)
            return httpx.Response(
                stream.status,
                headers=_body_headers(stream.headers),
                stream=_AsyncBody(stream, opened.pop_all(), request),
            )


class _AsyncBody(httpx.AsyncByteStream):
    def __init__(self, stream: HttpStream, opened: AsyncExitStack, request: httpx.Request) -> None:
        self._stream = stream
        self._opened = opened
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with as_sdk_errors(self._request):
            rest = b""
            async for piece in self._stream.chunks():
                *lines, rest = (rest + piece).split(b"\n")
                if not all(map(self._stream.limit.count_chunk, data_of(lines))):
                    raise self._stream.limit_exceeded()
                yield piece

    async def aclose(self) -> None:
        await self._opened.aclose()


class SyncTransport(httpx.BaseTransport):
    """The same for a thread, which blocks while the pool's own event loop sends the request."""

    def __init__(self, pool: ModelPool, endpoint: Endpoint) -> None:
        self._pool = pool
        self._transport = AsyncTransport(pool, endpoint)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        response = self._pool.wait_for(self._transport.handle_async_request(request))
        if isinstance(response.stream, _AsyncBody):
            response.stream = _SyncBody(self._pool, response.stream)
        return response


class _SyncBody(httpx.SyncByteStream):
    def __init__(self, pool: ModelPool, body: _AsyncBody) -> None:
        self._pool = pool
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        pieces = aiter(self._body)

        async def next_piece() -> bytes | None:
            return await anext(pieces, None)

        while (piece := self._pool.wait_for(next_piece())) is not None:
            yield piece

    def close(self) -> None:
        self._pool.wait_for(self._body.aclose())


def _pool_request(request: httpx.Request, body: bytes, endpoint: Endpoint) -> HttpRequest:
    return HttpRequest(
        method=request.method,
        url=URL(str(request.url), encoded=True),
        body=body,
        # aiohttp writes these itself.
        headers={
            name: value
            for name, value in request.headers.items()
            if name not in ("host", "content-length", "transfer-encoding", "connection")
        },
        timeout_seconds=endpoint.timeout_seconds,
        attempts=endpoint.attempts,
    )


def _is_streamed(request: httpx.Request) -> bool:
    if "json" not in request.headers.get("content-type", ""):
        return False
    try:
        fields = json.loads(request.content)
    except ValueError:
        return False
    return isinstance(fields, dict) and bool(fields.get("stream"))
