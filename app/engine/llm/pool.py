"""The connections of all model calls: one pool per process, one session per event loop."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import httpx
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from app.engine.llm.retries import backoff_seconds, is_retryable
from app.engine.llm.slots import Semaphore

_T = TypeVar("_T")
_Answer = TypeVar("_Answer", "HttpReply", aiohttp.ClientResponse)

# The connection broke. A timeout of the whole call is neither: there is no time left.
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
_CONNECT_TIMEOUT_SECONDS = 30.0
_IDLE_CONNECTION_SECONDS = 60.0


class PoolError(ConnectionError):
    """No whole answer came back; the message names the host and the cause."""


class PoolTimeout(PoolError):
    """The time for the call was up."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. `timeout_seconds` bounds all of its `attempts` and the waits between them."""

    url: URL
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    timeout_seconds: float
    attempts: int = 3
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole answer, whatever its status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpStream:
    """An answer that is still coming."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def chunks(self, every_seconds: float = 0) -> AsyncIterator[bytes]:
        """The body, as it arrives; gathered for `every_seconds` or until its end.

        Raises PoolError if it breaks off.
        """
        content = self._response.content
        gathered = asyncio.Event()
        content.on_eof(gathered.set)
        try:
            while chunk := await content.readany():
                yield chunk
                if every_seconds and not content.is_eof():
                    gathered.clear()
                    # A timeout would cancel and catch, at several times the cost.
                    timer = asyncio.get_running_loop().call_later(every_seconds, gathered.set)
                    await gathered.wait()
                    timer.cancel()
        except (aiohttp.ClientError, OSError) as error:
            raise _pool_error(self._response.url, error) from error

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


class ModelPool:
    """Sends requests over pooled connections, no more than `max_concurrency` at once.

    A request that fails for a passing reason (connection lost, 408, 409, 429, 5xx) is sent again,
    at most `attempts` times in all, after an exponentially growing, random wait or the server's
    own `Retry-After`. A wait that would outlast the request's time ends it at once. A request
    that waits for a second try keeps its place among the `max_concurrency`: a server that refuses
    calls is not helped by more of them.

    `timeout_seconds` is for callers who know no better for their requests.

    Cancelling a request closes its connection at once. One instance serves any number of event
    loops and threads, each loop over connections of its own.
    """

    def __init__(self, *, max_concurrency: int = 4000, timeout_seconds: float = 120.0) -> None:
        self.timeout_seconds = timeout_seconds
        self._slots = Semaphore(max_concurrency)
        self._sessions: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, aiohttp.ClientSession
        ] = weakref.WeakKeyDictionary()
        self._routes: dict[tuple[str, str | None], dict[str, Any]] = {}
        self._thread_loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def configure(self, *, max_concurrency: int, timeout_seconds: float) -> None:
        """Take other limits; requests under way keep theirs."""
        self.timeout_seconds = timeout_seconds
        self._slots.resize(max_concurrency)

    async def fetch(self, request: HttpRequest) -> HttpReply:
        """The whole answer to `request`. Raises PoolError, PoolTimeout."""
        async with self._slots:
            return await self._tried(request, self._fetch_once)

    @asynccontextmanager
    async def stream(self, request: HttpRequest) -> AsyncIterator[HttpStream]:
        """The answer to `request` as it comes; what was begun is not tried again.

        Raises PoolError, PoolTimeout.
        """
        async with self._slots:
            response = await self._tried(request, self._open)
            try:
                yield HttpStream(response)
            finally:
                response.close()

    def wait_for(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do `work` on a loop of the pool's own, and block this thread until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._own_loop()).result()

    async def aclose(self) -> None:
        """Close the connections of the running loop; cancel what threads wait for."""
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

    async def _tried(
        self, request: HttpRequest, once: Callable[[HttpRequest, float], Awaitable[_Answer]]
    ) -> _Answer:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout_seconds
        attempt = 1
        while True:
            answer, loss = None, None
            try:
                answer = await once(request, deadline)
                if not is_retryable(answer):
                    return answer
            except (aiohttp.ClientError, OSError) as error:
                loss = error
                if not isinstance(error, _LOST):
                    raise _pool_error(request.url, error) from error
            pause = backoff_seconds(attempt, answer)
            if attempt >= request.attempts or loop.time() + pause >= deadline:
                if answer is not None:
                    return answer
                raise _pool_error(request.url, loss) from loss
            if isinstance(answer, aiohttp.ClientResponse):
                answer.close()  # a refusal, still open, that nobody will read
            await asyncio.sleep(pause)
            attempt += 1

    async def _fetch_once(self, request: HttpRequest, deadline: float) -> HttpReply:
        async with await self._open(request, deadline) as response:
            return HttpReply(response.status, response.headers, await response.read())

    async def _open(self, request: HttpRequest, deadline: float) -> aiohttp.ClientResponse:
        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop) or self._new_session(loop)
        return await session.request(
            request.method,
            request.url,
            data=request.body,
            headers=request.headers,
            timeout=aiohttp.ClientTimeout(
                total=max(deadline - loop.time(), 0.001), sock_connect=_CONNECT_TIMEOUT_SECONDS
            ),
            **self._route_to(request.url),
        )

    def _new_session(self, loop: asyncio.AbstractEventLoop) -> aiohttp.ClientSession:
        # The slots bound the connections: a limit of aiohttp's own would wait on the call's time.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_SECONDS)
        session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        self._sessions[loop] = session
        return session

    def _route_to(self, url: URL) -> dict[str, Any]:
        """The certificates and proxy for a host, looked up once, as the OpenAI client would.

        That is SSL_CERT_FILE and SSL_CERT_DIR; HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
        """
        key = (url.scheme, url.host)
        route = self._routes.get(key)
        if route is None:
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


def _pool_error(url: URL, error: Exception | None) -> PoolError:
    if isinstance(error, TimeoutError):
        return PoolTimeout(f"no whole answer from {url.host} in time")
    cause = str(error) or type(error).__name__
    return PoolError(f"no whole answer from {url.host}: {cause}")
