"""`/api/crews`: what can be run, with what inputs, so that clients can offer forms."""

from typing import Annotated, Any

import msgspec
from litestar import Router, get
from litestar.datastructures import State
from litestar.openapi import ResponseSpec
from litestar.params import FromPath

from app.api.errors import ErrorAnswer
from app.crews.options import InputType
from app.engine import ExecutionMode
from app.runs import CrewInfo, RunService

_DEPRECATED = {"extra": {"deprecated": True, "description": "The same as execution_mode"}}


class InputView(msgspec.Struct):
    """An input: an empty or missing one becomes its default, or is refused if it is required.

    `type` is null where any will do. Texts in it have at most `max_chars` characters.
    """

    name: str
    type: InputType | None
    required: bool
    default: Any
    help: str
    max_chars: int


class OutputView(msgspec.Struct):
    """An output: a task's, and the role of the agent that has the task."""

    name: str
    agent: str


class CrewView(msgspec.Struct):
    """A crew; `execution_mode` is how the service executes its runs."""

    name: str
    description: str
    inputs: list[InputView]
    outputs: list[OutputView]
    execution_mode: ExecutionMode
    way: Annotated[ExecutionMode, msgspec.Meta(extra_json_schema=_DEPRECATED)]


class CrewList(msgspec.Struct):
    """The crews that are served."""

    crews: list[CrewView]


@get("/", summary="The crews that are served")
async def list_crews(state: State) -> CrewList:
    runs: RunService = state.runs
    return CrewList([_view(crew) for crew in runs.crews()])


@get(
    "/{name:str}",
    summary="A crew, its inputs and its outputs",
    responses={404: ResponseSpec(ErrorAnswer, description="No such crew")},
)
async def get_crew(name: FromPath[str], state: State) -> CrewView:
    runs: RunService = state.runs
    return _view(runs.crew(name))


crews_router = Router("/api/crews", route_handlers=[list_crews, get_crew], tags=["crews"])


def _view(crew: CrewInfo) -> CrewView:
    return CrewView(
        name=crew.name,
        description=crew.description,
        inputs=[msgspec.convert(input_, InputView, from_attributes=True) for input_ in crew.inputs],
        outputs=[msgspec.convert(task, OutputView, from_attributes=True) for task in crew.outputs],
        execution_mode=crew.execution_mode,
        way=crew.execution_mode,
    )
