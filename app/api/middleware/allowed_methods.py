"""The `Allow` header of responses to OPTIONS."""

from litestar import Litestar
from litestar.datastructures import MutableScopeHeaders
from litestar.types import Message, Scope


async def list_allowed_methods(message: Message, scope: Scope) -> None:
    """List all methods of the path, as Litestar's `before_send` hook.

    Litestar makes its handler of OPTIONS for the first handler of a path. That one lists no method
    of the path's other handlers.
    """
    if message["type"] == "http.response.start" and scope.get("method") == "OPTIONS":
        headers = MutableScopeHeaders(message)
        if "allow" in headers and message["status"] == 204:
            app: Litestar = scope["litestar_app"]
            path = scope["path_template"]
            methods = [route.methods for route in app.routes if route.path_format == path]
            headers["allow"] = ", ".join(sorted(set().union(*methods)))
