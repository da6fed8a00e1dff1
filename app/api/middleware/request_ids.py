"""Request ids: `X-Request-ID` of every response, and of the log lines of a request."""

import os
import re
from typing import Final

from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from app.logs import request_id

_HEADER: Final = b"x-request-id"
_WELL_FORMED: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:+/=-]{0,127}")
_STATE: Final = "request_id"


class RequestIds(ASGIMiddleware):
    """Names the request in its log lines, and those of the run that it submits.

    The server handles each request in a task of its own, so the context needs no reset.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        request_id.set(_id_of(scope).decode())
        await next_app(scope, receive, send)


async def add_request_id(message: Message, scope: Scope) -> None:
    """Add `X-Request-ID` to a response, as Litestar's `before_send` hook.

    Requests without a route have it, too, although no middleware handles them.
    """
    if message["type"] == "http.response.start":
        message["headers"] = [*message.get("headers", []), (_HEADER, _id_of(scope))]


def _id_of(scope: Scope) -> bytes:
    """The client's id of the request if it is well-formed; otherwise a new one."""
    state = scope["state"]
    found: bytes | None = state.get(_STATE)
    if found is None:
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        found = given if _WELL_FORMED.fullmatch(given) else os.urandom(16).hex().encode()
        state[_STATE] = found
    return found
