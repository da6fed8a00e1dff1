"""`/a2a`: each served crew as an agent of the A2A protocol, by JSON-RPC."""

from typing import Any

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
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.types import ASGIApp
from starlette.requests import Request as StarletteRequest

from app.api.a2a.handlers import CrewAgents
from app.api.errors import error_answers
from app.api.jsonrpc import forward, read_message
from app.api.middleware.auth import PUBLIC, RPC
from app.runs import CrewInfo, CrewInput, RunService, UnknownCrew

_VERSION = "0.1.0"
_PROTOCOLS = ("1.0", "0.3")


@get("/", summary="The cards of all agents", opt=PUBLIC)
async def list_agents(request: Request[Any, Any, State], state: State) -> list[dict[str, Any]]:
    """Each served crew is an agent."""
    return [_card(crew, request, state) for crew in _crews(state).values()]


@get(
    "/{crew:str}/.well-known/agent-card.json",
    summary="The card of an agent",
    responses=error_answers({404: "No such crew"}),
    opt=PUBLIC,
)
async def get_agent_card(
    crew: FromPath[str], request: Request[Any, Any, State], state: State
) -> dict[str, Any]:
    """What the agent does, which inputs it takes, and where and how it is asked."""
    return _card(_known(crew, state), request, state)


@post("/{crew:str}", include_in_schema=False, opt=RPC)
async def ask_agent(
    crew: FromPath[str], request: Request[Any, Any, State], state: State
) -> ASGIApp:
    """One request to an agent; its answer, or a stream of events."""
    _known(crew, state)
    body, _ = await read_message(request)
    return forward(state.a2a, body)


a2a_router = Router(
    "/a2a", route_handlers=[list_agents, get_agent_card, ask_agent], tags=["agents"]
)


def a2a_app(runs: RunService) -> Any:
    """The SDK's application behind `/a2a/NAME`."""
    dispatcher = JsonRpcDispatcher(CrewAgents(runs), _Context(), enable_v0_3_compat=True)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        response = await dispatcher.handle_requests(StarletteRequest(scope, receive))
        await response(scope, receive, send)

    return answer


class _Context(ServerCallContextBuilder):
    """Tells `CrewAgents` who asks which crew."""

    def build(self, request: StarletteRequest) -> ServerCallContext:
        return ServerCallContext(
            state={
                "headers": dict(request.headers),  # for the version of the protocol
                "crew": request.path_params["crew"],
                "caller": request.scope["user"],
            }
        )


def _crews(state: State) -> dict[str, CrewInfo]:
    runs: RunService = state.runs
    return {crew.name: crew for crew in runs.crews()}


def _known(crew: str, state: State) -> CrewInfo:
    known = _crews(state).get(crew)
    if known is None:
        raise UnknownCrew(f"no crew is named {crew}")
    return known


def _card(crew: CrewInfo, request: Request[Any, Any, State], state: State) -> dict[str, Any]:
    url = f"{request.base_url}a2a/{crew.name}"
    card = AgentCard(
        name=crew.name,
        description=crew.description,
        version=_VERSION,
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
    if state.needs_key:
        bearer = HTTPAuthSecurityScheme(scheme="bearer")
        card.security_schemes["key"].CopyFrom(SecurityScheme(http_auth_security_scheme=bearer))
        card.security_requirements.append(SecurityRequirement(schemes={"key": StringList()}))
    return agent_card_to_dict(card)


def _about_inputs(crew: CrewInfo) -> str:
    """How a message gives the crew its inputs."""
    needed = ", ".join(_about(input_) for input_ in crew.inputs if input_.required)
    others = ", ".join(_about(input_) for input_ in crew.inputs if not input_.required)
    told = [f"Needs {needed}." if needed else "", f"Takes {others}." if others else ""]
    one = f"a text is {crew.required[0]}" if len(crew.required) == 1 else "a text is JSON of inputs"
    return " ".join([*filter(None, told), f"Send inputs as data; {one}."])


def _about(input_: CrewInput) -> str:
    default = f"default: {input_.default}" if input_.default is not None else ""
    about = "; ".join(filter(None, [input_.help, default]))
    return f"{input_.name} ({about})" if about else input_.name
