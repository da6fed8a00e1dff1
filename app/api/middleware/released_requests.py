"""The values of a request are freed with its response."""

from litestar.types import ASGIApp, Receive, Scope, Send


def with_release(app: ASGIApp) -> ASGIApp:
    """The application, which keeps nothing of a request that has ended.

    The server keeps the scope of a connection's last request until the next one. A decoded body in
    it may be hundreds of thousands of objects, which each full garbage collection visits.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        finally:
            if "state" in scope:
                scope["state"].clear()

    return respond
