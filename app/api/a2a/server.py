"""The SDK's application behind `/a2a/NAME`."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from a2a.server.context import ServerCallContext
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.utils import proto_utils
from starlette.requests import Request as StarletteRequest

from app.api.a2a.cards import agent_card
from app.api.a2a.handlers import CrewAgents
from app.api.a2a.params import refusal_of_params
from app.runs import RunService

__all__ = ["agent_card", "create_a2a_app", "refusal_of_params"]

_own_recurse = proto_utils._recurse_validation


@wraps(_own_recurse)
def _recurse_validation(msg: Any, field: Any) -> list[Any]:
    """Look for required fields in messages of the protocol, and not in each value of a client."""
    if field.message_type is not None and field.message_type.file.package == "google.protobuf":
        return []
    return _own_recurse(msg, field)


# For thousands of values, the SDK's own needs up to a second in one step of the event loop.
proto_utils._recurse_validation = _recurse_validation


def create_a2a_app(runs: RunService) -> Callable[..., Any]:
    """The SDK's application behind `/a2a/NAME`."""
    dispatcher = JsonRpcDispatcher(CrewAgents(runs), _Context(), enable_v0_3_compat=True)

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        response = await dispatcher.handle_requests(StarletteRequest(scope, receive))
        await response(scope, receive, send)

    return respond


class _Context(ServerCallContextBuilder):
    """Gives `CrewAgents` the crew and the caller of a request."""

    def build(self, request: StarletteRequest) -> ServerCallContext:
        return ServerCallContext(
            state={
                "headers": dict(request.headers),  # for the version of the protocol
                "crew": request.path_params["crew"],
                "caller": request.scope["user"],
            }
        )
