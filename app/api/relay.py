"""Passes requests on to applications of other frameworks."""

from typing import Any

from litestar.types import ASGIApp, Receive, Scope, Send


def relayed(app: Any, body: bytes) -> ASGIApp:
    """The application, for one request whose body was read already (and found small enough)."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        unread: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return unread.pop() if unread else await receive()

        await app(scope, receive_again, send)

    return answer
