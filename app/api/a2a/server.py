"""The SDK's application behind `/a2a/NAME`."""

from collections.abc import Callable
from typing import Any

from a2a.server.context import ServerCallContext
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from starlette.requests import Request as StarletteRequest

from app.api.a2a.cards import agent_card
from app.api.a2a.client_values import CLIENT_VALUES
from app.api.a2a.handlers import CrewAgents
from app.api.a2a.params import refusal_of_params
from app.runs import RunService

__all__ = ["agent_card", "create_a2a_app", "refusal_of_params"]


def create_a2a_app(runs: RunService) -> Callable[..., Any]:
    """The SDK's application behind `/a2a/NAME`."""
    dispatcher = JsonRpcDispatcher(CrewAgents(runs), _Context(), enable_v0_3_compat=True)

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        response = await dispatcher.handle_requests(StarletteRequest(scope, receive))
        await response(scope, receive, send)

    return respond


class _Context(ServerCallContextBuilder):
    """Gives `CrewAgents` the crew, the caller and the message's values of a request."""

    def build(self, request: StarletteRequest) -> ServerCallContext:
        return ServerCallContext(
            state={
                "headers": dict(request.headers),  # for the version of the protocol
                "crew": request.path_params["crew"],
                "caller": request.scope["user"],
                "values": request.scope["state"][CLIENT_VALUES],
            }
        )
