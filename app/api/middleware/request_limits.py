"""Request size and time limits; response security headers."""

import asyncio
import math
from collections import Counter, defaultdict
from typing import Any
from urllib.parse import unquote_to_bytes
from weakref import WeakValueDictionary

from litestar.datastructures import MutableScopeHeaders
from litestar.exceptions import ClientException, HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.access.callers import Caller
from app.json_decoding import STEP_BYTES
from app.pacer import turn

MAX_HEADER_BYTES = 32_768
_BODY_SECONDS = 60.0
# Of all bodies of this process that have arrived in part.
_MAX_UNFINISHED_BYTES = 100_000_000
# Decoding and validating a body beyond this size is a step that may be long.
_SMALL_BODY_BYTES = 4096
# A caller has one body beyond this size under way in a process at a time.
_HUGE_BODY_BYTES = 1_000_000

_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RequestLimits(ASGIMiddleware):
    """Refuses headers that are too large (431) and bodies that arrive too slowly (408).

    A body has one deadline, which no part of it extends. All bodies that have arrived in part share
    a bound in bytes: beyond it, the oldest of the caller with most bytes is refused (408). A client
    that disconnects before its body has arrived is not logged as an error (400, which no client
    receives). Litestar enforces each handler's own limit on a body's size.

    Bodies are decoded in turns. A caller's huge bodies arrive one after another, each after the
    response to the previous one.
    """

    def __init__(self) -> None:
        # Of each caller, oldest first.
        self._unfinished: defaultdict[str, dict[_Body, None]] = defaultdict(dict)
        self._unfinished_bytes: Counter[str] = Counter()
        self._huge: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        # Each header counts with its separators (": ", CRLF), so that many small ones count, too.
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            problem = f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB"
            raise HTTPException(problem, status_code=431)
        for part, text in ("path", scope.get("raw_path")), ("query", scope.get("query_string")):
            if text and not is_utf8(text):
                raise ClientException(f"{part}: not UTF-8")
        body = _Body(asyncio.get_running_loop().time() + _BODY_SECONDS)
        arrived = False
        huge: asyncio.Lock | None = None

        async def receive_in_time() -> Any:
            nonlocal arrived, huge
            if arrived:  # only a disconnect can follow
                return await receive()
            if body.size:
                await turn()  # a part beyond the first is read in a step of its own
            message = await body.receive(receive)
            # Litestar would respond with 500. Handlers of GET have no body and wait for this.
            if message["type"] == "http.disconnect" and scope.get("method") == "POST":
                raise ClientException("the client disconnected before its body had arrived")
            arrived = not message.get("more_body", False)
            caller: Caller | None = scope.get("user")
            body.caller = caller.name if caller else ""
            if not arrived:
                self._count(body, len(message.get("body", b"")))
                if huge is None and body.size > _HUGE_BODY_BYTES:
                    lock = self._huge.setdefault(body.caller, asyncio.Lock())
                    await body.wait_for(lock)
                    huge = lock
                return message
            size = body.size + len(message.get("body", b""))
            self._forget(body)
            if size > _SMALL_BODY_BYTES:
                await turn(is_long=size > STEP_BYTES)
            return message

        try:
            await next_app(scope, receive_in_time, send)
        finally:
            self._forget(body)
            if huge is not None:
                huge.release()

    def _count(self, body: "_Body", size: int) -> None:
        """Count bytes of an unfinished body; refuse bodies while there are too many bytes.

        Those of the caller with most bytes are refused, oldest first.
        """
        self._unfinished[body.caller][body] = None
        body.size += size
        self._unfinished_bytes[body.caller] += size
        while self._unfinished_bytes.total() > _MAX_UNFINISHED_BYTES:
            ((caller, _),) = self._unfinished_bytes.most_common(1)
            oldest = next(iter(self._unfinished[caller]))
            self._forget(oldest)
            oldest.refuse("too many bodies are unfinished, and this one is the oldest")

    def _forget(self, body: "_Body") -> None:
        bodies = self._unfinished.get(body.caller, {})
        if body in bodies:
            del bodies[body]
            self._unfinished_bytes[body.caller] -= body.size
            if not bodies:
                del self._unfinished[body.caller], self._unfinished_bytes[body.caller]


class _Body:
    """A request body that arrives, and its deadline."""

    def __init__(self, deadline: float) -> None:
        self.caller = ""
        self.size = 0
        self._deadline = deadline
        self._problem = f"the body did not arrive within {_BODY_SECONDS:g} s"
        self._is_refused = False
        self._timeout: asyncio.Timeout | None = None  # while a message is awaited

    async def receive(self, receive: Receive) -> Any:
        """The next message. Raises HTTPException (408) at the deadline, or if it is refused."""
        if self._is_refused:
            raise HTTPException(self._problem, status_code=408)
        try:
            async with asyncio.timeout_at(self._deadline) as self._timeout:
                return await receive()
        except TimeoutError:
            raise HTTPException(self._problem, status_code=408) from None
        finally:
            self._timeout = None

    async def wait_for(self, lock: asyncio.Lock) -> None:
        """Acquire the lock. The deadline is that much later."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await lock.acquire()
        self._deadline += loop.time() - begun

    def refuse(self, problem: str) -> None:
        """End the body now."""
        self._problem, self._is_refused = problem, True
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(-math.inf)


def is_utf8(quoted: bytes) -> bool:
    """Whether a part of a URL is UTF-8; parsers would replace other characters."""
    try:
        unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError:
        return False
    return True


async def add_security_headers(message: Message, scope: Scope) -> None:
    """Add the security headers to a response, as Litestar's `before_send` hook.

    Every response sets headers that disable script execution, framing, MIME sniffing and caching.
    A handler's own headers win: the page of the API's description loads scripts of this service.
    """
    if message["type"] == "http.response.start":
        headers = MutableScopeHeaders(message)
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
