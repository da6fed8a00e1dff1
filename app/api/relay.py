"""Passes requests on to applications of other frameworks."""

from typing import Any

import msgspec
from litestar import Request
from litestar.types import ASGIApp, Receive, Scope, Send

from app.runs.errors import InvalidInput


async def read_message(request: Request[Any, Any, Any]) -> tuple[bytes, dict[str, Any]]:
    """The body of a request, and the JSON-RPC message in it. Raises InvalidInput."""
    body = await request.body()
    try:
        return body, msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidInput("body", "expected one JSON-RPC message") from None


def relayed(app: Any, body: bytes) -> ASGIApp:
    """The application, for one request whose body was read already (and found small enough)."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        unread: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return unread.pop() if unread else await receive()

        await app(scope, receive_again, send)

    return answer
