"""`/api/runs`: runs as a resource: submit, list, inspect, follow, cancel, resume, delete."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import MediaType, Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from app.api.dependencies import Runs
from app.api.errors import error_responses, run_location
from app.api.markdown import HtmlRenderer
from app.api.middleware.auth import CallerRequest
from app.api.sse import server_sent_events
from app.api.views import BatchAnswer, RunList, RunView, run_summary, run_view
from app.runs import (
    InvalidInput,
    ReviewDecision,
    RunFilter,
    RunOptions,
    RunStatus,
    UnknownOutput,
    clean_text,
    webhooks_at,
)
from storage import OutputKey

_MAX_BATCH = 1000
_MAX_BATCH_BODY_BYTES = 20_000_000
_HEARTBEAT_SECONDS = 15.0
_MAX_CREW_CHARACTERS = 100

_UNKNOWN = "There is no such run"
_NOTHING_ACCEPTED = "Nothing was accepted; Retry-After says when to try again"

# A string, because a datetime would also accept a number, and a time without its zone.
_Time = Annotated[str | None, QueryParameter(schema_extra={"format": "date-time"})]


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A run to submit. With `stream`, models stream from the first call.

    `webhook_url` receives finished tasks and the end of the run.
    """

    crew: str
    inputs: dict[str, Any] = {}
    stream: bool = False
    webhook_url: str | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Runs of one crew, one for each of the inputs; `webhook_url` is the webhook of all of them."""

    crew: str
    inputs: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=_MAX_BATCH)]
    webhook_url: str | None = None


class HumanAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """A human's review of a task's output.

    If it is approved, the run continues, with the feedback as context for the next tasks. Otherwise
    the task is executed again with the feedback, and its new output is reviewed, too.
    """

    task: str
    approve: bool
    feedback: str = ""


@post(
    "/",
    status_code=202,
    summary="Submit a run",
    responses=error_responses(
        {
            404: "No such crew",
            409: "The key was used for another request",
            503: _NOTHING_ACCEPTED,
        }
    ),
)
async def submit_run(
    data: JSONBody[RunRequest],
    runs: Runs,
    request: CallerRequest,
    idempotency_key: Annotated[
        str | None,
        HeaderParameter(
            name="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="The same key gives the same run, however often it is sent.",
        ),
    ] = None,
) -> Response[RunView]:
    """The response means that the run is accepted and will be executed."""
    options = RunOptions(data.stream, idempotency_key, webhooks_at(data.webhook_url))
    run = await runs.submit(data.crew, data.inputs, request.user, options)
    headers = {"Location": run_location(run.run_id)}
    return Response(await run_view(runs, run), status_code=202, headers=headers)


@post(
    "/batch",
    status_code=202,
    summary="Submit a run for each of many inputs",
    request_max_body_size=_MAX_BATCH_BODY_BYTES,
    responses=error_responses({404: "No such crew", 413: "Too large", 503: _NOTHING_ACCEPTED}),
)
async def submit_batch(
    data: JSONBody[BatchRequest], runs: Runs, request: CallerRequest
) -> BatchAnswer:
    """All of them are accepted, or none."""
    accepted = await runs.submit_many(
        data.crew, data.inputs, request.user, webhook_url=data.webhook_url
    )
    return BatchAnswer([run.run_id for run in accepted])


@get("/", summary="List runs, newest first", responses=error_responses({}))
async def list_runs(
    runs: Runs,
    request: CallerRequest,
    crew: FromQuery[str | None] = None,
    status: FromQuery[RunStatus | None] = None,
    created_from: _Time = None,
    created_before: _Time = None,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
) -> RunList:
    run_filter = RunFilter(
        crew=crew and clean_text(crew, "crew", _MAX_CREW_CHARACTERS),
        status=status,
        created_from=_time("created_from", created_from),
        created_before=_time("created_before", created_before),
    )
    page = await runs.page(run_filter, cursor, limit, request.user)
    return RunList([run_summary(run) for run in page.runs], page.next_cursor)


@get("/{run_id:uuid}", summary="Get a run", responses=error_responses({404: _UNKNOWN}))
async def get_run(run_id: FromPath[UUID], runs: Runs, request: CallerRequest) -> RunView:
    return await run_view(runs, await runs.get(run_id, request.user))


@post(
    "/{run_id:uuid}/cancel",
    status_code=200,
    summary="Cancel a run",
    responses=error_responses({404: _UNKNOWN}),
)
async def cancel_run(run_id: FromPath[UUID], runs: Runs, request: CallerRequest) -> RunView:
    """Its model connections are closed and its outputs deleted; a settled run stays as it is."""
    await runs.cancel(run_id, request.user)
    return await run_view(runs, await runs.get(run_id, request.user))


@post(
    "/{run_id:uuid}/resume",
    status_code=200,
    summary="Review a task's output, as a human",
    responses=error_responses({404: _UNKNOWN, 503: _NOTHING_ACCEPTED}),
)
async def resume_run(
    request: CallerRequest, run_id: FromPath[UUID], data: JSONBody[HumanAnswer], runs: Runs
) -> RunView:
    """Of two reviews at once, one counts; a run that doesn't wait for it responds with 400."""
    await runs.resume(ReviewDecision(run_id, data.task, data.feedback, data.approve), request.user)
    return await run_view(runs, await runs.get(run_id, request.user))


@delete(
    "/{run_id:uuid}",
    summary="Delete a settled run with its events, outputs and webhooks",
    responses=error_responses({404: _UNKNOWN, 409: "The run is not settled"}),
)
async def delete_run(run_id: FromPath[UUID], runs: Runs, request: CallerRequest) -> None:
    await runs.delete(run_id, request.user)


@get(
    "/{run_id:uuid}/outputs/{name:str}",
    summary="Get one output of a run that succeeded",
    media_type=MediaType.TEXT,
    responses=error_responses({404: "There is no such run or output"}),
)
async def get_output(
    run_id: FromPath[UUID],
    name: FromPath[str],
    runs: Runs,
    request: CallerRequest,
    renderer: NamedDependency[HtmlRenderer],
    as_: Annotated[Literal["markdown", "html"], QueryParameter(name="as")] = "markdown",
) -> Response[str]:
    """A markdown file, or a fragment of HTML that is safe to show."""
    run = await runs.get(run_id, request.user)
    text = (run.outputs or {}).get(name)
    if text is None:
        raise UnknownOutput(f"run {run_id} is {run.status} and has no output of that name")
    if as_ == "html":
        return Response(await renderer.render(text), media_type="text/html; charset=utf-8")
    filename = OutputKey.filename_from(name)
    headers = {"Content-Disposition": f'attachment; filename="{filename}.md"'}
    return Response(text, media_type="text/markdown; charset=utf-8", headers=headers)


@get(
    "/{run_id:uuid}/events",
    summary="Follow a run's events, as server-sent events",
    responses=error_responses({404: _UNKNOWN}),
)
async def run_events(
    run_id: FromPath[UUID],
    runs: Runs,
    request: CallerRequest,
    last_event_id: Annotated[
        str | None, HeaderParameter(name="Last-Event-ID", pattern="^[0-9]{1,18}$")
    ] = None,
) -> Stream:
    """Stored events after `Last-Event-ID`, then new ones, until the run is settled."""
    events = runs.subscribe(
        run_id,
        request.user,
        after_seq=-1 if last_event_id is None else int(last_event_id),
        heartbeat_seconds=_HEARTBEAT_SECONDS,
    )
    await anext(events)  # raises UnknownRun before the stream starts
    return server_sent_events(events)


runs_router = Router(
    "/api/runs",
    route_handlers=[
        submit_run,
        submit_batch,
        list_runs,
        get_run,
        cancel_run,
        resume_run,
        delete_run,
        get_output,
        run_events,
    ],
    tags=["runs"],
)


def _time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time: datetime = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
        return time.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # in UTC, it may be outside of all years
        problem = "not a time with its zone, such as 2030-01-31T12:00:00Z"
        raise InvalidInput(name, problem) from None
