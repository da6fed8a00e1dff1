"""The event loop's time that a request uses is charged to its caller."""

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from app.pacer import metered


def with_charges(app: ASGIApp) -> ASGIApp:
    """The application, with all steps of a request charged to its caller.

    They include routing and the responses to errors, which may last longer than a handler.
    """

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await metered(None, handle, scope, receive, send)
        else:
            await app(scope, receive, send)

    return respond
