"""`/api/runs`: runs as a resource: submit, list, inspect, follow, cancel, resume, delete."""

import asyncio
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from app.api.batch_request import MAX_BATCH, MAX_BATCH_BODY_BYTES, BatchHttpRequest
from app.api.budget_fields import BudgetFields
from app.api.dependencies import Runs
from app.api.disconnects import OnDisconnect, cancelled_on_disconnect, until_disconnected
from app.api.end_users import EndUser, on_behalf_of
from app.api.errors import accepted, error_responses, run_location
from app.api.events import EVENT_DATA, EventsOperation
from app.api.links import linked, links_to_batch, links_to_run
from app.api.markdown import HtmlRenderer
from app.api.media_types import or_in
from app.api.middleware.auth import CallerRequest
from app.api.order_fields import NotBefore, Priority, parse_time
from app.api.output_files import archive, document
from app.api.parameters import with_query_prefix
from app.api.sse import server_sent_events
from app.api.views import (
    BatchAnswer,
    CallList,
    RunList,
    RunView,
    call_list,
    run_summary,
    run_view,
)
from app.api.waiting import (
    MAX_IDEMPOTENCY_KEY_CHARACTERS,
    IdempotencyKey,
    Prefer,
    Wait,
    preferred_wait,
    wait_for_end,
)
from app.prices import nanos
from app.runs import (
    METADATA_LIMITS,
    SECRETS_LIMITS,
    InvalidInput,
    OutputElsewhere,
    ReviewDecision,
    RunFilter,
    RunOptions,
    RunService,
    RunStatus,
    UnknownOutput,
    clean_text,
    webhooks_at,
)
from storage import OutputKey

_HEARTBEAT_SECONDS = 15.0
_MAX_NAME_CHARACTERS = 100
_MAX_LIST = 200
_MAX_EVENT_ID = 10**18 - 1

_MARKDOWN = "text/markdown"
_HTML = "text/html"
_ZIP = "application/zip"
_METADATA_PREFIX = "metadata."

_UNKNOWN = "There is no such run"
_NO_MORE_EVENTS = ResponseSpec(
    None, description="The run is settled and has no more events", generate_examples=False
)
# In order of preference, for a request that accepts both.
_SUBMIT_TYPES = ["application/json", "text/event-stream"]
_NO_CONNECTION = "cancel is for requests with wait, or that accept text/event-stream first"
_NOTHING_ACCEPTED = "Nothing was accepted; Retry-After says when to try again"

_EVENTS = ResponseSpec(
    EVENT_DATA,
    description="A stream of events; the schema is that of each event",
    media_type="text/event-stream",
    generate_examples=False,
)

Secrets = Annotated[
    dict[str, str],
    msgspec.Meta(description=f"Values for the crew's tools and models. {SECRETS_LIMITS}"),
]

Metadata = Annotated[dict[str, str], msgspec.Meta(description=METADATA_LIMITS)]

# A string, because a datetime would also accept a number, and a time without its zone.
_Time = Annotated[str | None, QueryParameter(schema_extra={"format": "date-time"})]


_Amount = Annotated[float | None, QueryParameter(ge=0, le=1e9)]


class RunRequest(BudgetFields, forbid_unknown_fields=True):
    """A run to submit. With `stream`, models stream from the first call.

    `webhook_url` receives finished tasks and the end of the run. `metadata` are your own names and
    texts for the run. `max_cost` (USD), `max_model_calls` and `max_tokens` are its budget: a run
    that needs more fails as `budget_exceeded`, and keeps its finished outputs. Of your waiting
    runs, those with the highest `priority` begin first. The run begins at `not_before` (UTC, or
    with an offset) at the earliest.
    """

    crew: str
    inputs: dict[str, Any] = msgspec.field(default_factory=dict)
    stream: bool = False
    webhook_url: str | None = None
    metadata: Metadata = msgspec.field(default_factory=dict)
    priority: Priority = 0
    not_before: NotBefore = None
    user: EndUser = None
    secrets: Secrets = msgspec.field(default_factory=dict)


class BatchRequest(BudgetFields, forbid_unknown_fields=True):
    """Runs of one crew, one for each of the inputs.

    `webhook_url` and `metadata` are those of all of them. `max_cost` (USD), `max_model_calls` and
    `max_tokens` are the budget of each. `priority` and `not_before` are those of all of them.
    """

    crew: str
    inputs: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=MAX_BATCH)]
    webhook_url: str | None = None
    metadata: Metadata = msgspec.field(default_factory=dict)
    priority: Priority = 0
    not_before: NotBefore = None
    user: EndUser = None
    secrets: Secrets = msgspec.field(default_factory=dict)


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
    operation_class=linked(links_to_run("/run_id")),
    responses={
        200: ResponseSpec(RunView, description="The run, which has ended; only with `wait`"),
        202: ResponseSpec(RunView, description="The run is accepted", generate_examples=False),
    }
    | error_responses(
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
    idempotency_key: IdempotencyKey = None,
    wait: Wait = None,
    prefer: Prefer = None,
    on_disconnect: OnDisconnect = "continue",
) -> Response[RunView] | Stream:
    """The response means that the run is accepted and will be executed.

    With `wait`, it is the run with 200 if the run ends in time. A request that prefers
    `text/event-stream` gets the run's events, from the first model call. Both can cancel the run
    if the client disconnects (`on_disconnect`).
    """
    streams = request.accept.best_match(_SUBMIT_TYPES) == "text/event-stream"
    preferred = preferred_wait(prefer) if wait is None and not streams else None
    cancels = on_disconnect == "cancel"
    if cancels and not (streams or wait or preferred):
        raise InvalidInput("on_disconnect", _NO_CONNECTION)
    options = RunOptions(
        stream=data.stream or streams,
        idempotency_key=idempotency_key,
        webhooks=webhooks_at(data.webhook_url),
        metadata=data.metadata,
        budget=data.budget,
        secrets=data.secrets,
        priority=data.priority,
        not_before=parse_time("not_before", data.not_before),
    )
    caller = on_behalf_of(request.user, data.user)
    run = await runs.submit(data.crew, data.inputs, caller, options)
    headers = {"Location": run_location(run.run_id)}
    if streams:
        return await _stream(runs, run.run_id, request, -1, headers, cancels=cancels)
    if preferred is not None:
        headers["Preference-Applied"] = f"wait={preferred}"
        wait = preferred
    if wait:
        with cancelled_on_disconnect(request, runs, run.run_id) if cancels else nullcontext():
            run = await wait_for_end(runs, run, caller, wait)
    # A repeat of a key gets 202 as well, unless it waits.
    status_code = 200 if wait and run.is_settled else 202
    with accepted(run.run_id):
        return Response(await run_view(runs, run, caller), status_code=status_code, headers=headers)


@post(
    "/batch",
    status_code=202,
    summary="Submit a run for each of many inputs",
    operation_class=linked(links_to_batch("/batch_id") | links_to_run("/run_ids/0")),
    request_class=BatchHttpRequest,
    request_max_body_size=MAX_BATCH_BODY_BYTES,
    responses=error_responses(
        {
            404: "No such crew",
            409: "The key was used for another request",
            413: "Too large",
            503: _NOTHING_ACCEPTED,
        }
    ),
)
async def submit_batch(
    data: JSONBody[BatchRequest],
    runs: Runs,
    request: CallerRequest,
    idempotency_key: IdempotencyKey = None,
) -> Response[BatchAnswer]:
    """All of them are accepted, or none.

    A repeat of the request with the same `Idempotency-Key` gets the same batch.
    """
    batch = await runs.submit_many(
        data.crew,
        data.inputs,
        on_behalf_of(request.user, data.user),
        RunOptions(
            idempotency_key=idempotency_key,
            webhooks=webhooks_at(data.webhook_url),
            metadata=data.metadata,
            budget=data.budget,
            secrets=data.secrets,
            priority=data.priority,
            not_before=parse_time("not_before", data.not_before),
        ),
    )
    return Response(
        BatchAnswer(batch.batch_id, list(batch.run_ids)),
        status_code=202,
        headers={"Location": f"/api/batches/{batch.batch_id}"},
    )


@get(
    "/",
    summary="List runs, newest first",
    operation_class=linked(links_to_run("/runs/0/run_id")),
    opt=with_query_prefix(_METADATA_PREFIX),
    responses=error_responses({}),
)
async def list_runs(
    runs: Runs,
    request: CallerRequest,
    crew: FromQuery[str | None] = None,
    status: FromQuery[list[RunStatus] | None] = None,
    created_from: _Time = None,
    created_before: _Time = None,
    batch: FromQuery[UUID | None] = None,
    key: FromQuery[str | None] = None,
    error_type: FromQuery[str | None] = None,
    cost_from: _Amount = None,
    cost_to: _Amount = None,
    seconds_from: _Amount = None,
    seconds_to: _Amount = None,
    run_id: Annotated[list[UUID] | None, QueryParameter(max_items=_MAX_LIST)] = None,
    schedule: FromQuery[UUID | None] = None,
    idempotency_key: Annotated[
        str | None, QueryParameter(min_length=1, max_length=MAX_IDEMPOTENCY_KEY_CHARACTERS)
    ] = None,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=_MAX_LIST)] = 50,
) -> RunList:
    """`metadata.KEY=VALUE` lists the runs with this metadata; give it once for each key.

    `key` is the id of the API key that submitted the runs, for admins. `cost_from` and `cost_to`
    are in USD. `seconds_from` and `seconds_to` bound the time from the start of the last attempt
    to the run's end. Runs without a cost or an end match no such bound. `run_id` selects runs by
    their ids; repeat it for several.

    `idempotency_key` finds the run, or the first run of the batch, that your request with this key
    submitted.
    """
    run_filter = RunFilter(
        crew=crew and clean_text(crew, "crew", _MAX_NAME_CHARACTERS),
        statuses=tuple(status or ()),
        created_from=parse_time("created_from", created_from),
        created_before=parse_time("created_before", created_before),
        idempotency_key=idempotency_key,
        batch_id=batch,
        owner=key and clean_text(key, "key", _MAX_NAME_CHARACTERS),
        error_type=error_type and clean_text(error_type, "error_type", _MAX_NAME_CHARACTERS),
        cost_from=None if cost_from is None else nanos(cost_from),
        cost_to=None if cost_to is None else nanos(cost_to),
        seconds_from=seconds_from,
        seconds_to=seconds_to,
        run_ids=tuple(run_id or ()),
        schedule_id=schedule,
        metadata=_metadata_filter(request),
    )
    page = await runs.page(run_filter, cursor, limit, request.user)
    return RunList([run_summary(run) for run in page.runs], page.next_cursor)


@get("/{run_id:uuid}", summary="Get a run", responses=error_responses({404: _UNKNOWN}))
async def get_run(run_id: FromPath[UUID], runs: Runs, request: CallerRequest) -> RunView:
    return await run_view(runs, await runs.get(run_id, request.user), request.user)


@post(
    "/{run_id:uuid}/cancel",
    status_code=200,
    summary="Cancel a run",
    responses=error_responses({404: _UNKNOWN}),
)
async def cancel_run(
    run_id: FromPath[UUID], runs: Runs, request: CallerRequest, reason: FromQuery[str] = ""
) -> RunView:
    """Its model connections are closed. It keeps the outputs of its finished tasks.

    The run's `error` shows the reason. A settled run stays as it is.
    """
    await runs.cancel(run_id, request.user, reason)
    return await run_view(runs, await runs.get(run_id, request.user), request.user)


@post(
    "/{run_id:uuid}/retry",
    status_code=202,
    summary="Retry a failed or cancelled run",
    responses=error_responses(
        {404: _UNKNOWN, 409: "The run succeeded, or waits for a human", 503: _NOTHING_ACCEPTED}
    ),
)
async def retry_run(
    run_id: FromPath[UUID], runs: Runs, request: CallerRequest
) -> Response[RunView]:
    """It continues after its finished tasks; a run under way stays as it is."""
    await runs.retry(run_id, request.user)
    view = await run_view(runs, await runs.get(run_id, request.user), request.user)
    return Response(view, status_code=202, headers={"Location": run_location(run_id)})


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
    return await run_view(runs, await runs.get(run_id, request.user), request.user)


@delete(
    "/{run_id:uuid}",
    summary="Delete a settled run with its events, outputs and webhooks",
    responses=error_responses({404: _UNKNOWN, 409: "The run is not settled"}),
)
async def delete_run(run_id: FromPath[UUID], runs: Runs, request: CallerRequest) -> None:
    await runs.delete(run_id, request.user)


@get(
    "/{run_id:uuid}/outputs/{name:str}",
    summary="Get one output of a run, as soon as its task is finished",
    media_type=_MARKDOWN,
    operation_class=or_in(_HTML),
    responses=error_responses(
        {404: "There is no such run or output", 409: "Another process has the output for now"}
    ),
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
    text = (await runs.outputs(run, [name]) or {}).get(name)
    if text is None:
        finished = [task["name"] for task in await runs.tasks(run) if task["status"] == "finished"]
        if name in finished and not run.is_settled:
            raise OutputElsewhere(run_id, name)
        raise UnknownOutput(f"run {run_id} is {run.status} and has no output of that name")
    if as_ == "html":
        return Response(await renderer.render(text), media_type=_HTML)
    filename = OutputKey.filename_from(name)
    headers = {"Content-Disposition": f'attachment; filename="{filename}.md"'}
    return Response(text, media_type=_MARKDOWN, headers=headers)


@get(
    "/{run_id:uuid}/outputs",
    summary="Get all outputs of a run so far, as one file",
    media_type=_MARKDOWN,
    operation_class=or_in(_ZIP),
    responses=error_responses({404: "There is no such run, or it has no output"}),
)
async def get_outputs(
    run_id: FromPath[UUID],
    runs: Runs,
    request: CallerRequest,
    as_: Annotated[Literal["markdown", "zip"], QueryParameter(name="as")] = "markdown",
) -> Response[bytes]:
    """A markdown document, or a zip archive with a markdown file for each output."""
    run = await runs.get(run_id, request.user)
    outputs = await runs.outputs(run)
    if not outputs:
        raise UnknownOutput(f"run {run_id} is {run.status} and has no output")
    if as_ == "zip":
        content, media_type, ending = await asyncio.to_thread(archive, outputs), _ZIP, "zip"
    else:
        content, media_type, ending = document(run, outputs).encode(), _MARKDOWN, "md"
    headers = {"Content-Disposition": f'attachment; filename="{run_id}.{ending}"'}
    return Response(content, media_type=media_type, headers=headers)


@get(
    "/{run_id:uuid}/events",
    summary="Follow a run's events, as server-sent events",
    operation_class=EventsOperation,
    responses={200: _EVENTS, 204: _NO_MORE_EVENTS} | error_responses({404: _UNKNOWN}),
)
async def run_events(
    run_id: FromPath[UUID],
    runs: Runs,
    request: CallerRequest,
    last_event_id: Annotated[
        int | None, HeaderParameter(name="Last-Event-ID", ge=0, le=_MAX_EVENT_ID)
    ] = None,
    texts: FromQuery[bool] = False,
) -> Stream | Response[None]:
    """Stored events after `Last-Event-ID`, then new ones, until the run is settled.

    With `texts`, a `task.tokens` event with `so_far` follows the stored ones for each task under
    way: the text that its model has streamed. A process knows the texts of runs that it executes,
    and those that it has relayed to subscribers.
    After the last event of a settled run, the response is 204: an `EventSource` stops.
    """
    after_seq = -1 if last_event_id is None else last_event_id
    if last_event_id is not None and await runs.is_over(run_id, request.user, after_seq):
        return Response(None, status_code=204)
    return await _stream(runs, run_id, request, after_seq, texts=texts)


@get(
    "/{run_id:uuid}/calls",
    summary="List the calls of a run to models and tools",
    responses=error_responses({404: _UNKNOWN}),
)
async def list_run_calls(
    run_id: FromPath[UUID],
    runs: Runs,
    request: CallerRequest,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 200,
) -> CallList:
    """The calls so far of all attempts, in the order of their starts.

    While another process executes the run, calls of tasks that are not finished may be missing.
    With KEEP_MESSAGES, a page has at most 1 MiB of texts, if it has more than one call.
    """
    return call_list(await runs.calls(run_id, request.user, cursor=cursor, limit=limit))


runs_router = Router(
    "/api/runs",
    route_handlers=[
        submit_run,
        submit_batch,
        list_runs,
        get_run,
        cancel_run,
        retry_run,
        resume_run,
        delete_run,
        get_output,
        get_outputs,
        run_events,
        list_run_calls,
    ],
    tags=["runs"],
)


async def _stream(
    runs: RunService,
    run_id: UUID,
    request: CallerRequest,
    after_seq: int,
    headers: Mapping[str, str] | None = None,
    *,
    cancels: bool = False,
    texts: bool = False,
) -> Stream:
    events = runs.subscribe(
        run_id,
        request.user,
        after_seq=after_seq,
        heartbeat_seconds=_HEARTBEAT_SECONDS,
        texts=texts,
    )
    if cancels:
        events = until_disconnected(events, request, runs, run_id)
    await anext(events)  # raises UnknownRun before the stream starts
    return server_sent_events(events, headers)


def _metadata_filter(request: CallerRequest) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name.startswith(_METADATA_PREFIX):
            key = name.removeprefix(_METADATA_PREFIX)
            if found.setdefault(key, value) != value:
                raise InvalidInput(f"metadata.{key}", "given with two values; give one")
    return found
