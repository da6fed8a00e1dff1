"""`/a2a`: each available crew as an agent of the A2A protocol, by JSON-RPC."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
from litestar import Request, Router, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from litestar.types import ASGIApp

from app.api.a2a.client_values import CLIENT_VALUES, detach_values
from app.api.dependencies import Runs
from app.api.errors import REFUSALS, ErrorAnswer, ParamsRefused
from app.api.jsonrpc import forward, read_message
from app.api.middleware.auth import PUBLIC, RPC, CallerRequest, PublicOperation
from app.api.sdk import import_sdk
from app.runs import RunFilter, RunService, UnknownCrew

_SERVER = "app.api.a2a.server"

NeedsKey: TypeAlias = NamedDependency[bool]


class A2aApplication:
    """The SDK's application behind `/a2a/NAME`; a client's first request creates it."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs
        self._application: Callable[..., Any] | None = None

    async def get(self) -> Callable[..., Any]:
        """The application."""
        if self._application is None:
            await import_sdk(_SERVER)
            from app.api.a2a.server import create_a2a_app  # noqa: PLC0415

            self._application = create_a2a_app(self._runs)
        return self._application


@get(
    "/",
    summary="List the cards of all agents",
    operation_class=PublicOperation,
    opt=PUBLIC,
)
async def list_agents(
    request: Request[Any, Any, Any], runs: Runs, needs_key: NeedsKey
) -> list[dict[str, Any]]:
    """Each available crew is an agent."""
    await import_sdk(_SERVER)
    from app.api.a2a.server import agent_card  # noqa: PLC0415

    return [agent_card(crew, request, needs_key=needs_key) for crew in runs.crews()]


@get(
    "/{crew:str}/.well-known/agent-card.json",
    summary="Get the card of an agent",
    responses={
        status: ResponseSpec(ErrorAnswer, description=description, generate_examples=False)
        for status, description in ((400, REFUSALS[400]), (404, "No such crew"))
    },
    operation_class=PublicOperation,
    opt=PUBLIC,
)
async def get_agent_card(
    crew: FromPath[str], request: Request[Any, Any, Any], runs: Runs, needs_key: NeedsKey
) -> dict[str, Any]:
    """The agent's purpose, its inputs, and the address and protocols for requests to it."""
    await import_sdk(_SERVER)
    from app.api.a2a.server import agent_card  # noqa: PLC0415

    return agent_card(runs.crew(crew), request, needs_key=needs_key)


@post("/{crew:str}", include_in_schema=False, opt=RPC)
async def call_agent(
    crew: FromPath[str],
    request: CallerRequest,
    runs: Runs,
    a2a_app: NamedDependency[A2aApplication],
) -> ASGIApp:
    """Handle one request to an agent with one response, or a stream of events.

    A crew that is not registered any more accepts no messages, but its runs remain tasks.
    """
    try:
        runs.crew(crew)
    except UnknownCrew:
        if not (await runs.page(RunFilter(crew=crew), None, 1, request.user)).runs:
            raise
    _, message = await read_message(request)
    request.scope["state"][CLIENT_VALUES] = detach_values(message)
    app = await a2a_app.get()
    from app.api.a2a.server import refusal_of_params  # noqa: PLC0415

    if _has_id(message) and (problems := refusal_of_params(message)) is not None:
        raise ParamsRefused(message["id"], problems)
    return forward(app, msgspec.json.encode(message))


a2a_router = Router(
    "/a2a", route_handlers=[list_agents, get_agent_card, call_agent], tags=["agents"]
)


def _has_id(message: Mapping[str, Any]) -> bool:
    """Whether it is a JSON-RPC request that gets a response; the SDK refuses other messages."""
    id_ = message.get("id")
    return message.get("jsonrpc") == "2.0" and isinstance(id_, str | int)
