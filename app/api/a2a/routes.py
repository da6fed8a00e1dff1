"""`/a2a`: each available crew as an agent of the A2A protocol, by JSON-RPC."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from a2a.server.context import ServerCallContext
from a2a.server.request_handlers.response_helpers import agent_card_to_dict
from a2a.server.routes.common import ServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    HTTPAuthSecurityScheme,
    SecurityRequirement,
    SecurityScheme,
    StringList,
)
from litestar import Request, Router, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from litestar.types import ASGIApp
from starlette.requests import Request as StarletteRequest

from app.api.a2a.handlers import CrewAgents
from app.api.a2a.params import refusal_of_params
from app.api.dependencies import Runs
from app.api.errors import REFUSALS, ErrorAnswer, ParamsRefused
from app.api.jsonrpc import forward, read_message
from app.api.middleware.auth import PUBLIC, RPC, CallerRequest, PublicOperation
from app.runs import CrewInfo, CrewInput, RunFilter, RunService, UnknownCrew
from app.version import VERSION

_PROTOCOLS = ("1.0", "0.3")


NeedsKey: TypeAlias = NamedDependency[bool]


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
    return [_card(crew, request, needs_key=needs_key) for crew in runs.crews()]


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
    return _card(runs.crew(crew), request, needs_key=needs_key)


@post("/{crew:str}", include_in_schema=False, opt=RPC)
async def call_agent(
    crew: FromPath[str],
    request: CallerRequest,
    runs: Runs,
    a2a_app: NamedDependency[Callable[..., Any]],
) -> ASGIApp:
    """Handle one request to an agent with one response, or a stream of events.

    A crew that is not registered any more accepts no messages, but its runs remain tasks.
    """
    try:
        runs.crew(crew)
    except UnknownCrew:
        if not (await runs.page(RunFilter(crew=crew), None, 1, request.user)).runs:
            raise
    body, message = await read_message(request)
    if _has_id(message) and (problems := refusal_of_params(message)) is not None:
        raise ParamsRefused(message["id"], problems)
    return forward(a2a_app, body)


a2a_router = Router(
    "/a2a", route_handlers=[list_agents, get_agent_card, call_agent], tags=["agents"]
)


def create_a2a_app(runs: RunService) -> Callable[..., Any]:
    """The SDK's application behind `/a2a/NAME`."""
    dispatcher = JsonRpcDispatcher(CrewAgents(runs), _Context(), enable_v0_3_compat=True)

    async def respond(scope: Any, receive: Any, send: Any) -> None:
        response = await dispatcher.handle_requests(StarletteRequest(scope, receive))
        await response(scope, receive, send)

    return respond


def _has_id(message: Mapping[str, Any]) -> bool:
    """Whether it is a JSON-RPC request that gets a response; the SDK refuses other messages."""
    id_ = message.get("id")
    return message.get("jsonrpc") == "2.0" and isinstance(id_, str | int)


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


def _card(crew: CrewInfo, request: Request[Any, Any, Any], *, needs_key: bool) -> dict[str, Any]:
    url = f"{request.base_url}a2a/{crew.name}"
    card = AgentCard(
        name=crew.name,
        description=crew.description,
        version=VERSION,
        supported_interfaces=[
            AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version=version)
            for version in _PROTOCOLS
        ],
        capabilities=AgentCapabilities(streaming=True, push_notifications=False),
        default_input_modes=["application/json", "text/plain"],
        default_output_modes=["text/markdown"],
        skills=[
            AgentSkill(
                id=crew.name,
                name=crew.name,
                description=f"{crew.description} {_about_inputs(crew)}",
                tags=["crew", *crew.tasks],
            )
        ],
    )
    if needs_key:
        bearer = HTTPAuthSecurityScheme(scheme="bearer")
        card.security_schemes["key"].CopyFrom(SecurityScheme(http_auth_security_scheme=bearer))
        card.security_requirements.append(SecurityRequirement(schemes={"key": StringList()}))
    return agent_card_to_dict(card)


def _about_inputs(crew: CrewInfo) -> str:
    """The sentences of a card that describe the crew's inputs."""
    needed = ", ".join(_about(input_) for input_ in crew.inputs if input_.required)
    others = ", ".join(_about(input_) for input_ in crew.inputs if not input_.required)
    about = [f"Needs {needed}." if needed else "", f"Accepts {others}." if others else ""]
    text = (
        f"a text is {crew.required[0]}" if len(crew.required) == 1 else "a text is JSON of inputs"
    )
    return " ".join([*filter(None, about), f"Send inputs as data; {text}."])


def _about(input_: CrewInput) -> str:
    default = f"default: {input_.default}" if input_.default is not None else ""
    suggested = ", ".join(str(example) for example in input_.examples)
    examples = f"for example: {suggested}" if suggested else ""
    about = "; ".join(filter(None, [input_.help.rstrip("."), default, examples]))
    return f"{input_.name} ({about})" if about else input_.name
