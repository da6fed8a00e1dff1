"""JSON-RPC requests, forwarded to the ASGI applications of protocol SDKs."""

from typing import Any

import msgspec
from litestar import Request
from litestar.types import ASGIApp, Receive, Scope, Send

from app.access.errors import RateLimitExceeded
from app.api.errors import MessageRefused
from app.json_decoding import decode_object
from app.runs import InvalidInput, check_bounds


async def read_message(request: Request[Any, Any, Any]) -> tuple[bytes, dict[str, Any]]:
    """The body of a request, and the JSON-RPC message in it.

    Raises:
        InvalidInput: the body is not one JSON-RPC message, or it exceeds the bounds of a run's
            inputs: levels, values and characters.
        MessageRefused: the caller has reached a rate limit. For a message without a response it is
            the RateLimitExceeded itself.
    """
    body = await request.body()
    refusal: RateLimitExceeded | None = request.scope["state"].get("refusal")
    try:
        message = decode_object(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal or InvalidInput("body", "expected one JSON-RPC message") from None
    if refusal is None:
        # The SDKs validate a message in several passes, each slower than this one.
        check_bounds("body", message, "a message")
        return body, message
    if "id" in message:
        raise MessageRefused(message["id"], refusal)
    raise refusal


def forward(app: Any, body: bytes) -> ASGIApp:
    """The application, for one request whose body is already read (and small enough)."""

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        unread: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return unread.pop() if unread else await receive()

        await app(scope, receive_again, send)

    return respond
