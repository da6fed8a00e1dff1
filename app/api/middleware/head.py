"""`HEAD`: the headers of the response to `GET`, without its body."""

import asyncio
from typing import Any

from litestar.datastructures import MutableScopeHeaders
from litestar.types import ASGIApp, Message, Receive, Scope, Send


def with_head(app: ASGIApp) -> ASGIApp:
    """The application, with `HEAD` for every path that has `GET`.

    A stream of events ends after its headers: the application sees the client disconnect.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":
            head = _Head(send)
            # A copy: the server reads the method from its own, and sends no body for HEAD.
            get: Any = dict(scope, method="GET")
            try:
                await app(get, head.receive, head.send)
            finally:
                get["method"] = "HEAD"
                scope.update(get)  # the route, for the access log
        else:
            await app(scope, receive, send)

    return respond


async def name_head(message: Message, _: Scope) -> None:
    """Name `HEAD` in `Allow` where `GET` is, as Litestar's `before_send` hook."""
    if message["type"] == "http.response.start" and message["status"] in (204, 405):
        headers = MutableScopeHeaders(message)
        methods = headers.get("allow", "").split(", ")
        if "GET" in methods and "HEAD" not in methods:
            headers["Allow"] = ", ".join([*methods, "HEAD"])


class _Head:
    """The request without a body, and the response without one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_read = False
        self._is_sent = asyncio.Event()

    async def receive(self) -> Any:
        if not self._is_read:
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._is_sent.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send(message)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            self._is_sent.set()
