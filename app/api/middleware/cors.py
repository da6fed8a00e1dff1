"""Cross-origin resource sharing (CORS): pages of `ALLOWED_ORIGINS` can call the API.

The origins are those that the CSRF guard trusts. No cookies or other credentials of a browser are
involved: a page sends its API key in `Authorization`.
"""

from collections.abc import Collection
from typing import Final

from litestar.types import ASGIApp, Message, Receive, Scope, Send

_PREFLIGHT_HEADERS: Final = [
    (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE"),
    (
        b"access-control-allow-headers",
        b"Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-End-User, "
        b"X-Request-ID, A2A-Version, Mcp-Protocol-Version, Mcp-Session-Id",
    ),
    (b"access-control-max-age", b"600"),
]
_EXPOSED: Final = (
    b"access-control-expose-headers",
    b"Location, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, X-Request-ID, "
    b"Preference-Applied, WWW-Authenticate, Mcp-Session-Id",
)
_VARY: Final = (b"vary", b"Origin")


def with_cors(app: ASGIApp, allowed_origins: Collection[str]) -> ASGIApp:
    """The application; its responses allow pages of these origins to read them.

    A preflight of another origin gets the response to any `OPTIONS`, which allows nothing.
    """
    allowed = frozenset(origin.lower().encode() for origin in allowed_origins)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"")
        is_allowed = origin.lower() in allowed
        grant = [(b"access-control-allow-origin", origin)] if is_allowed else []
        is_preflight = (
            b"access-control-request-method" in headers and scope.get("method") == "OPTIONS"
        )
        if is_allowed and is_preflight:
            await send(
                {
                    "type": "http.response.start",
                    "status": 204,
                    "headers": [_VARY, *grant, *_PREFLIGHT_HEADERS],
                }
            )
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        added = [_VARY, *grant, _EXPOSED] if is_allowed else [_VARY]

        async def send_with_grant(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await app(scope, receive, send_with_grant)

    return respond
