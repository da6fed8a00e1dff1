"""`POST /api/run`: run the idea crew and wait for its three reports."""

from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import Response, post
from litestar.datastructures import State
from litestar.openapi import ResponseSpec
from litestar.params import JSONBody

from app.api.errors import (
    STATUS_OF_FAILED_RUN,
    ErrorAnswer,
    RunAccepted,
    accepted,
    error_answers,
    error_response,
)
from app.api.middleware.auth import CallerRequest
from app.runs import Run, RunService

_CREW = "idea"

Text = Annotated[str, msgspec.Meta(max_length=4000)] | None


class Profile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """What a person tells about themselves; the crew has a default for each field."""

    goal_type: Text = None
    time_commitment: Text = None
    budget_range: Text = None
    interest_area: Text = None
    sub_interest_area: Text = None
    work_style: Text = None
    skill_strength: Text = None
    experience_summary: Text = None


class Reports(msgspec.Struct):
    """The three reports, in markdown."""

    profile_analysis: str
    startup_ideas_research: str
    personalized_recommendations: str


class RunAnswer(msgspec.Struct):
    """A run that succeeded, and the inputs that it ran with."""

    run_id: UUID
    inputs: dict[str, Any]
    outputs: Reports
    raw_result: str
    waited_seconds: float
    success: bool = True


@post(
    "/api/run",
    status_code=200,
    summary="Run the idea crew and wait for its reports",
    responses=error_answers(
        {
            400: "An input is invalid; the error names the field",
            409: "The run was cancelled, or waits for a human",
            413: "The body is too large",
            422: "The crew produced no meaningful output",
            500: "The run failed",
            502: "The model failed",
            503: "Nothing was accepted; Retry-After says when to try again",
            504: "The run exceeded its time limit",
        }
    )
    | {
        202: ResponseSpec(
            RunAccepted,
            description="The run is accepted and has not ended here; Location shows how it ends",
            generate_examples=False,
        )
    },
)
async def run_idea_crew(
    data: JSONBody[Profile], state: State, request: CallerRequest
) -> Response[RunAnswer] | Response[ErrorAnswer]:
    """The run goes on, is saved and cleaned up even if the client goes away."""
    service: RunService = state.runs
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value}
    run = await service.submit(_CREW, given, request.user)
    with accepted(run.run_id):
        return _answer(await service.wait(run, request.user))


def _answer(run: Run) -> Response[RunAnswer] | Response[ErrorAnswer]:
    if run.outputs is None or run.raw_result is None:
        error_type = run.error_type or "internal_error"
        status_code = STATUS_OF_FAILED_RUN.get(error_type, 500)
        error = run.error or "internal error"
        return error_response(status_code, error_type, error, run.run_id)
    answer = RunAnswer(
        run.run_id,
        run.inputs,
        Reports(**run.outputs),
        run.raw_result,
        run.waited_seconds or 0.0,
    )
    return Response(answer, status_code=200)
