"""Request size and time limits; response security headers."""

import asyncio
from typing import Any
from urllib.parse import unquote_to_bytes

from litestar.datastructures import MutableScopeHeaders
from litestar.exceptions import ClientException, HTTPException
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

MAX_HEADER_BYTES = 32_768
_BODY_SECONDS = 60.0

_SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# The pages that show the API's description load scripts and styles.
_PAGES = "/schema"


class RequestLimits(ASGIMiddleware):
    """Refuses headers that are too large (431) and bodies that arrive too slowly (408).

    A body has one deadline, which no part of it extends. A client that disconnects before its body
    has arrived is not logged as an error (400, which no client receives). Litestar enforces each
    handler's own limit on a body's size.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        # Each header counts with its separators (": ", CRLF), so that many small ones count, too.
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            problem = f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB"
            raise HTTPException(problem, status_code=431)
        if query := scope.get("query_string", b""):
            _check_encoding(query)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _BODY_SECONDS
        arrived = False

        async def receive_in_time() -> Any:
            nonlocal arrived
            if arrived:  # only a disconnect can follow
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                problem = f"the body did not arrive within {_BODY_SECONDS:g} s"
                raise HTTPException(problem, status_code=408) from None
            # Litestar would respond with 500. Handlers of GET have no body and wait for this.
            if message["type"] == "http.disconnect" and scope.get("method") == "POST":
                raise ClientException("the client disconnected before its body had arrived")
            arrived = not message.get("more_body", False)
            return message

        await next_app(scope, receive_in_time, send)


def _check_encoding(query: bytes) -> None:
    """Refuse a query that is not UTF-8; its parser would replace characters."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        raise ClientException("query: not UTF-8") from None


async def add_security_headers(message: Message, scope: Scope) -> None:
    """Add the security headers to a response, as Litestar's `before_send` hook.

    Every response sets headers that disable script execution, framing, MIME sniffing and caching.
    """
    if message["type"] == "http.response.start" and not scope["path"].startswith(_PAGES):
        headers = MutableScopeHeaders(message)
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
