"""Who asks: the `Caller` of every request, to mounted applications too."""

from typing import Any, TypeAlias

from litestar import Request
from litestar.datastructures import State
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from app.runs.callers import Caller

CallerRequest: TypeAlias = Request[Caller, Any, State]
"""A request whose `user` is the `Caller`."""


class Identity(ASGIMiddleware):
    """Puts the `Caller` at `scope["user"]`, which Litestar calls `request.user`."""

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        client = scope["client"]
        scope["user"] = Caller(None, is_admin=True, address=client[0] if client else None)
        await next_app(scope, receive, send)
