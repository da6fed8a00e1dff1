"""`/api/crews`: the available crews with their inputs, from which clients can make forms."""

from typing import Annotated, Any

import msgspec
from litestar import Router, get
from litestar.params import FromPath

from app.api.dependencies import Runs
from app.api.errors import error_responses
from app.crews.options import InputType
from app.engine import ExecutionMode
from app.runs import CrewInfo

_DEPRECATED = {"extra": {"deprecated": True, "description": "The same as execution_mode"}}


class InputView(msgspec.Struct):
    """An input. If it is empty or missing, its default applies; without one it is required.

    A null `type` allows any type. Texts have at most `max_chars` characters. `examples` are values
    to suggest; others are allowed.
    """

    name: str
    type: InputType | None
    required: bool
    default: Any
    help: str
    max_chars: int
    examples: list[Any]


class OutputView(msgspec.Struct):
    """An output: the name of a task, and the role of its agent."""

    name: str
    agent: str


class CrewView(msgspec.Struct):
    """A crew; `execution_mode` is how the service executes its runs.

    `reason` explains why that is not a faster one; it may be empty. `fingerprint` changes with the
    crew's visible definition; it is empty for a flow. `models` are the names of the models that it
    calls, as far as known before a run.
    """

    name: str
    description: str
    inputs: list[InputView]
    outputs: list[OutputView]
    execution_mode: ExecutionMode
    reason: str
    fingerprint: str
    models: list[str]
    way: Annotated[ExecutionMode, msgspec.Meta(extra_json_schema=_DEPRECATED)]


class CrewList(msgspec.Struct):
    """The available crews."""

    crews: list[CrewView]


@get("/", summary="List the available crews", responses=error_responses({}))
async def list_crews(runs: Runs) -> CrewList:
    return CrewList([_view(crew) for crew in runs.crews()])


@get(
    "/{name:str}",
    summary="Get a crew, its inputs and its outputs",
    responses=error_responses({404: "No such crew"}),
)
async def get_crew(name: FromPath[str], runs: Runs) -> CrewView:
    return _view(runs.crew(name))


crews_router = Router("/api/crews", route_handlers=[list_crews, get_crew], tags=["crews"])


def _view(crew: CrewInfo) -> CrewView:
    return CrewView(
        name=crew.name,
        description=crew.description,
        inputs=[msgspec.convert(input_, InputView, from_attributes=True) for input_ in crew.inputs],
        outputs=[msgspec.convert(task, OutputView, from_attributes=True) for task in crew.outputs],
        execution_mode=crew.execution_mode,
        reason=crew.reason,
        fingerprint=crew.fingerprint,
        models=list(crew.models),
        way=crew.execution_mode,
    )
