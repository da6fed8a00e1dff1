"""The cards of agents: each available crew is an agent."""

from typing import Any

from a2a.server.request_handlers.response_helpers import agent_card_to_dict
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
from litestar import Request

from app.runs import CrewInfo, CrewInput
from app.version import VERSION

_PROTOCOLS = ("1.0", "0.3")


def agent_card(
    crew: CrewInfo, request: Request[Any, Any, Any], *, needs_key: bool
) -> dict[str, Any]:
    """The agent's purpose, its inputs, and the address and protocols for requests to it."""
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
