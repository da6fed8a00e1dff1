"""`POST /api/run`: run the idea crew and wait for its three reports."""

from contextlib import nullcontext
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import post
from litestar.openapi import ResponseSpec
from litestar.params import JSONBody

from app.api.dependencies import Runs
from app.api.disconnects import OnDisconnect, cancelled_on_disconnect
from app.api.errors import RunAccepted, RunUnsuccessful, accepted, error_responses
from app.api.links import linked, links_to_run
from app.api.middleware.auth import CallerRequest
from app.api.waiting import IdempotencyKey
from app.crews.idea.profile import FIELDS
from app.runs import RunOptions

_CREW = "idea"

Text = Annotated[str, msgspec.Meta(max_length=4000)] | None

_FIELDS = {field.name: field for field in FIELDS}


def _described(name: str) -> msgspec.Meta:
    field = _FIELDS[name]
    return msgspec.Meta(description=field.description, examples=list(field.examples))


class Profile(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A person's profile; the crew has a default for each field."""

    goal_type: Annotated[Text, _described("goal_type")] = None
    time_commitment: Annotated[Text, _described("time_commitment")] = None
    budget_range: Annotated[Text, _described("budget_range")] = None
    interest_area: Annotated[Text, _described("interest_area")] = None
    sub_interest_area: Annotated[Text, _described("sub_interest_area")] = None
    work_style: Annotated[Text, _described("work_style")] = None
    skill_strength: Annotated[Text, _described("skill_strength")] = None
    experience_summary: Annotated[Text, _described("experience_summary")] = None


class Reports(msgspec.Struct):
    """The three reports, in markdown."""

    profile_analysis: str
    startup_ideas_research: str
    personalized_recommendations: str


class RunAnswer(msgspec.Struct):
    """A run that succeeded, with its inputs; `assumed_inputs` were not given and have defaults."""

    run_id: UUID
    inputs: dict[str, Any]
    assumed_inputs: list[str]
    outputs: Reports
    raw_result: str
    waited_seconds: float
    success: bool = True


_ACCEPTED = ResponseSpec(
    RunAccepted,
    description="The run is accepted but did not end here; Location shows how it ends",
    generate_examples=False,
)


@post(
    "/api/run",
    status_code=200,
    summary="Run the idea crew and wait for its reports",
    operation_class=linked(links_to_run("/run_id")),
    responses={202: _ACCEPTED}
    | error_responses(
        {
            400: "An input is invalid; the error names the field",
            402: "The run's budget is used up",
            409: "The run was cancelled, waits for a human, or the key is of another request",
            413: "The body is too large",
            422: "The crew produced no meaningful output",
            500: "The run failed",
            502: "The model failed",
            503: "Nothing was accepted; Retry-After says when to try again",
            504: "The run exceeded its time limit",
        }
    ),
)
async def run_idea_crew(
    data: JSONBody[Profile],
    runs: Runs,
    request: CallerRequest,
    idempotency_key: IdempotencyKey = None,
    on_disconnect: OnDisconnect = "continue",
) -> RunAnswer:
    """The run continues, is saved and cleaned up even if the client disconnects.

    With `on_disconnect=cancel`, it is cancelled then.
    """
    given = {name: value for name, value in msgspec.structs.asdict(data).items() if value}
    options = RunOptions(idempotency_key=idempotency_key)
    run = await runs.submit(_CREW, given, request.user, options)
    cancels = on_disconnect == "cancel"
    with (
        accepted(run.run_id),
        cancelled_on_disconnect(request, runs, run.run_id) if cancels else nullcontext(),
    ):
        run = await runs.wait(run, request.user)
    if run.outputs is None or run.raw_result is None:
        raise RunUnsuccessful(run)
    return RunAnswer(
        run.run_id,
        run.inputs,
        list(run.assumed_inputs),
        Reports(**run.outputs),
        run.raw_result,
        run.waited_seconds or 0.0,
    )
