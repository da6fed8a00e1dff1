"""`/crews/NAME`: a crew's API as CrewAI's hosted platform (AMP) has it, for clients of that."""

from typing import Any
from uuid import UUID

from litestar import Request, Response, Router, get, post
from litestar.openapi.spec import Link
from litestar.params import FromPath, JSONBody

from app.api.amp.bodies import (
    InputsAnswer,
    Kickoff,
    KickoffAnswer,
    Resume,
    ResumeAnswer,
    Status,
    status_of,
    webhooks_in,
)
from app.api.amp.errors import PATH, AmpError, amp_responses
from app.api.dependencies import Runs
from app.api.links import linked
from app.api.middleware.auth import CallerRequest
from app.api.order_fields import parse_time
from app.api.waiting import IdempotencyKey
from app.budgets import budget
from app.runs import MissingInputs, ReviewDecision, Run, RunOptions, RunService, UnknownRun


def _status_operation_id(_: object, __: object, path: list[Any]) -> str:
    """Operation ids are unique, and the same handler has two paths."""
    return "get_kickoff_status" if path[-1] != "status" else "get_kickoff_status_by_id"


_STATUS_LINK = Link(
    operation_id="get_kickoff_status",
    parameters={"crew": "$request.path.crew", "kickoff_id": "$response.body#/kickoff_id"},
)


@get(
    "/inputs",
    summary="List the inputs of a crew",
    operation_id="list_crew_inputs",
    responses=amp_responses(404),
)
async def crew_inputs(crew: FromPath[str], runs: Runs) -> InputsAnswer:
    return InputsAnswer(list(runs.crew(crew).named_inputs))


@post(
    "/kickoff",
    status_code=200,
    summary="Submit a run",
    operation_id="kickoff_crew",
    operation_class=linked({"get_kickoff_status": _STATUS_LINK}),
    responses=amp_responses(404, 409, 422, 503),
)
async def kickoff(
    request: CallerRequest,
    crew: FromPath[str],
    data: JSONBody[Kickoff],
    runs: Runs,
    idempotency_key: IdempotencyKey = None,
) -> KickoffAnswer:
    """The response means that the run is accepted and will be executed."""
    options = RunOptions(
        idempotency_key=idempotency_key,
        webhooks=webhooks_in(data),
        meta=data.meta,
        budget=budget(data.max_cost, data.max_model_calls, data.max_tokens),
        priority=data.priority,
        not_before=parse_time("not_before", data.not_before),
    )
    run = await runs.submit(crew, data.inputs, request.user, options)
    return KickoffAnswer(run.run_id)


@get(
    ["/status/{kickoff_id:uuid}", "/{kickoff_id:uuid}/status"],
    summary="Get the status of a run",
    operation_id=_status_operation_id,
    responses=amp_responses(404),
)
async def crew_status(
    request: CallerRequest, crew: FromPath[str], kickoff_id: FromPath[UUID], runs: Runs
) -> Status:
    run = await _run(runs, crew, kickoff_id, request)
    return status_of(run, await runs.tasks(run))


@post(
    "/resume",
    status_code=200,
    summary="Review a task's output, as a human",
    operation_id="resume_crew",
    responses=amp_responses(404, 503),
)
async def resume(
    request: CallerRequest, crew: FromPath[str], data: JSONBody[Resume], runs: Runs
) -> ResumeAnswer:
    """Of two reviews at once, one counts; a run that doesn't wait for it responds with 400."""
    await _run(runs, crew, data.execution_id, request)
    await runs.resume(
        ReviewDecision(
            data.execution_id, data.task_id, data.human_feedback, data.is_approve, webhooks_in(data)
        ),
        request.user,
    )
    if data.is_approve:
        return ResumeAnswer("resumed", "the run continues")
    return ResumeAnswer("retrying", f"the task {data.task_id} is executed again")


def _missing_inputs(_: Request[Any, Any, Any], error: MissingInputs) -> Response[AmpError]:
    details = {"missing_inputs": list(error.names)}
    return Response(AmpError("Validation Error", str(error), details), status_code=422)


def _unknown_run(_: Request[Any, Any, Any], error: UnknownRun) -> Response[AmpError]:
    return Response(AmpError("Execution not found", str(error)), status_code=404)


amp_router = Router(
    PATH + "/{crew:str}",
    route_handlers=[crew_inputs, kickoff, resume, crew_status],
    exception_handlers={MissingInputs: _missing_inputs, UnknownRun: _unknown_run},
    tags=["crews"],
)


async def _run(runs: RunService, crew: str, run_id: UUID, request: CallerRequest) -> Run:
    """The run, if it is of this crew."""
    run = await runs.get(run_id, request.user)
    if run.crew != crew:
        raise UnknownRun(run_id)
    return run
