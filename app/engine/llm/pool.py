"""The connections of all model calls: one pool per process, one session per event loop."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import httpx
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from app.engine.calls import active_model_call, note_refusal
from app.engine.llm.answer_limit import MAX_OUTPUT_CHARS, AnswerLimit
from app.engine.llm.retries import backoff_seconds, is_retryable
from app.engine.llm.semaphore import Semaphore
from app.pacer import turn
from app.projects import outside

_T = TypeVar("_T")
_Response = TypeVar("_Response", "HttpReply", aiohttp.ClientResponse)

# The connection broke. A timeout of the whole call is not listed: there is no time left.
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
_CONNECT_TIMEOUT_SECONDS = 30.0
_REFUSED = 429
_IDLE_CONNECTION_SECONDS = 60.0


class PoolError(ConnectionError):
    """No complete response arrived; the message names the host and the cause."""


class PoolTimeout(PoolError):
    """The call timed out."""


class PoolLimitExceeded(PoolError):
    """The response is larger than the limit; the rest is not read."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. `timeout_seconds` limits all of its `attempts` with the waits between them."""

    url: URL
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    timeout_seconds: float
    attempts: int = 3
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A complete response with any status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpStream:
    """A response that is still arriving.

    `limit` bounds each line of `chunks` and the whole of `read`; readers of chunks count the text.
    """

    def __init__(self, response: aiohttp.ClientResponse, limit: AnswerLimit) -> None:
        self._response = response
        self.limit = limit
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self, every_seconds: float = 0) -> AsyncIterator[bytes]:
        """The body as it arrives, in chunks of `every_seconds` each.

        Raises PoolError if the connection breaks, PoolLimitExceeded for a line beyond the limit.
        """
        content = self._response.content
        gathered = asyncio.Event()
        content.on_eof(gathered.set)
        line_bytes = 0
        try:
            while chunk := await content.readany():
                end = chunk.rfind(b"\n")
                line_bytes = len(chunk) - end - 1 + (line_bytes if end < 0 else 0)
                if line_bytes > self.limit.max_bytes:
                    raise self.limit_exceeded()
                yield chunk
                if every_seconds and not content.is_eof():
                    gathered.clear()
                    # asyncio.timeout would cancel and catch, at several times the cost.
                    timer = asyncio.get_running_loop().call_later(every_seconds, gathered.set)
                    await gathered.wait()
                    timer.cancel()
        except PoolError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise _pool_error(self._response.url, error) from error

    async def read(self) -> bytes:
        """The whole body. Raises PoolError, PoolLimitExceeded."""
        try:
            return await _read(self._response, self.limit)
        except PoolError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise _pool_error(self._response.url, error) from error

    def limit_exceeded(self) -> PoolLimitExceeded:
        """The error for a response beyond the limit; closes its connection."""
        return _limit_exceeded(self._response, self.limit)


class ModelPool:
    """Sends requests over pooled connections, at most `max_concurrency` at a time.

    A request that fails for a transient reason (connection lost, 408, 409, 429, 5xx) is retried, up
    to `attempts` times in all. The wait is exponential backoff with jitter, or the server's own
    `Retry-After`. A wait beyond the request's timeout ends the request immediately. A request that
    waits for a retry keeps its slot, so that a server that rejects calls does not get more of them.

    `timeout_seconds` is the default for requests. A response with more than `max_output_chars`
    characters raises PoolLimitExceeded, and its connection is closed at the limit.

    Cancelling a request closes its connection at once. One instance works for any number of event
    loops and threads; each loop has connections of its own.
    """

    def __init__(
        self,
        *,
        max_concurrency: int = 4000,
        timeout_seconds: float = 120.0,
        max_output_chars: int = MAX_OUTPUT_CHARS,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._max_output_chars = max_output_chars
        self._semaphore = Semaphore(max_concurrency)
        self._sessions: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, aiohttp.ClientSession
        ] = weakref.WeakKeyDictionary()
        self._routes: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def configure(
        self,
        *,
        max_concurrency: int,
        timeout_seconds: float,
        max_output_chars: int = MAX_OUTPUT_CHARS,
    ) -> None:
        """Change the limits; active requests keep theirs."""
        self.timeout_seconds = timeout_seconds
        self._max_output_chars = max_output_chars
        self._semaphore.resize(max_concurrency)

    async def fetch(self, request: HttpRequest) -> HttpReply:
        """The complete response to `request`. Raises PoolError, PoolTimeout."""
        async with self._slot():
            reply = await self._with_retries(request, self._fetch_once)
        await turn()  # responses arrive together
        return reply

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpStream]:
        """The response to `request` as it arrives. A response that has begun is not retried.

        Raises PoolError, PoolTimeout.
        """
        async with self._slot():
            response = await self._with_retries(request, self._open)
            try:
                yield HttpStream(response, AnswerLimit(self._max_output_chars))
            finally:
                response.close()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        started = time.monotonic_ns()
        async with self._semaphore:
            if (call := active_model_call.get()) is not None:
                call.waited += time.monotonic_ns() - started
            yield

    def wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Execute `work` on the pool's own event loop, and block this thread until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._own_loop()).result()

    async def aclose(self) -> None:
        """Close the connections of the running loop; cancel the requests of threads."""
        await self._close_session()
        with self._lock:
            loop, self._thread_loop = self._thread_loop, None
        if loop is not None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._leave_loop(), loop))
            loop.call_soon_threadsafe(loop.stop)

    async def _leave_loop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._close_session()

    async def _close_session(self) -> None:
        session = self._sessions.pop(asyncio.get_running_loop(), None)
        if session is not None:
            await session.close()

    async def _with_retries(
        self, request: HttpRequest, once: Callable[[HttpRequest, float], Awaitable[_Response]]
    ) -> _Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout_seconds
        attempt = 1
        while True:
            response, loss = None, None
            try:
                response = await once(request, deadline)
                if not is_retryable(response):
                    return response
            except PoolError:
                raise
            except (aiohttp.ClientError, OSError) as error:
                loss = error
                if not isinstance(error, _LOST):
                    raise _pool_error(request.url, error) from error
            pause = backoff_seconds(attempt, response)
            if response is not None and response.status == _REFUSED:
                note_refusal(pause)
            if attempt >= request.attempts or loop.time() + pause >= deadline:
                if response is not None:
                    return response
                raise _pool_error(request.url, loss) from loss
            if isinstance(response, aiohttp.ClientResponse):
                response.close()  # an open response that is not read
            await asyncio.sleep(pause)
            attempt += 1
            if (call := active_model_call.get()) is not None:
                call.retries += 1

    async def _fetch_once(self, request: HttpRequest, deadline: float) -> HttpReply:
        async with await self._open(request, deadline) as response:
            body = await _read(response, AnswerLimit(self._max_output_chars))
            return HttpReply(response.status, response.headers, body)

    async def _open(self, request: HttpRequest, deadline: float) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop) or self._new_session(loop)
        call = active_model_call.get()
        headers = {**request.headers, **call.headers} if call is not None else request.headers
        return await session.request(
            request.method,
            request.url,
            data=request.body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(
                total=max(deadline - loop.time(), 0.001), sock_connect=_CONNECT_TIMEOUT_SECONDS
            ),
            **self._route_to(request.url),
        )

    def _new_session(self, loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
        # The semaphore limits the connections: a wait in aiohttp would count as time of the call.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_SECONDS)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._sessions[loop] = session
        return session

    def _route_to(self, url: URL) -> dict[str, Any]:
        """The certificates and the proxy for a host, looked up once, as the OpenAI client does.

        They come from SSL_CERT_FILE and SSL_CERT_DIR; HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
        """
        key = (url.scheme, url.host)
        route = self._routes.get(key)
        if route is None:
            # All crews share the route: a project's own environment does not choose it.
            with outside():
                route = {"ssl": httpx.create_ssl_context()} if url.scheme == "https" else {}
                with suppress(LookupError):  # no proxy for this host
                    route["proxy"], route["proxy_auth"] = get_env_proxy_for_url(url)
            self._routes[key] = route
        return route

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._thread_loop is None:
                loop = self._thread_loop = asyncio.new_event_loop()
                threading.Thread(
                    target=_run_and_close, args=[loop], name="model-calls", daemon=True
                ).start()
            return self._thread_loop


def _run_and_close(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _read(response: aiohttp.ClientResponse, limit: AnswerLimit) -> bytes:
    chunks = []
    size = 0
    while chunk := await response.content.readany():
        chunks.append(chunk)
        size += len(chunk)
        if size > limit.max_bytes:
            raise _limit_exceeded(response, limit)
    return b"".join(chunks)


def _limit_exceeded(response: aiohttp.ClientResponse, limit: AnswerLimit) -> PoolLimitExceeded:
    response.close()
    return PoolLimitExceeded(
        f"the answer from {response.url.host} exceeds MAX_OUTPUT_CHARS={limit.max_chars}"
    )


def _pool_error(url: URL, error: Exception | None) -> PoolError:
    if isinstance(error, TimeoutError):
        return PoolTimeout(f"no whole answer from {url.host} in time")
    cause = str(error) or type(error).__name__
    return PoolError(f"no whole answer from {url.host}: {cause}")
