"""`/api/runs`: runs as a resource, to start, look at, watch, stop and delete."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from litestar import MediaType, Response, Router, delete, get, post
from litestar.datastructures import State
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream

from app.api.errors import error_answers, run_location
from app.api.markdown import to_safe_html
from app.api.middleware.auth import CallerRequest
from app.runs import (
    Delivery,
    DeliveryStatus,
    Event,
    InvalidInput,
    ListedRun,
    ReviewDecision,
    Run,
    RunFilter,
    RunOptions,
    RunService,
    RunStatus,
    UnknownOutput,
    webhooks_at,
)
from storage import OutputKey

_MAX_BATCH = 1000
_MAX_BATCH_BODY_BYTES = 20_000_000
_HEARTBEAT_SECONDS = 15.0


# As a datetime it would take a bare number, too, and a time without its zone.
_Time = Annotated[str | None, QueryParameter(schema_extra={"format": "date-time"})]


class RunRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A run to start. `stream` asks the models to stream from the first call.

    `webhook_url` is told of finished tasks and of the run's end.
    """

    crew: str
    inputs: dict[str, Any] = {}
    stream: bool = False
    webhook_url: str | None = None


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Runs of one crew, one for each of the inputs; `webhook_url` is told of all of them."""

    crew: str
    inputs: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=_MAX_BATCH)]
    webhook_url: str | None = None


class BatchAnswer(msgspec.Struct):
    """The runs' ids, in the order of their inputs."""

    run_ids: list[UUID]


class HumanAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """What a human says of a task's output. Approved, the run goes on, with the feedback as context
    for the tasks to come; else the task is done again with it, and asked about again.
    """

    task: str
    approve: bool
    feedback: str = ""


class AwaitingView(msgspec.Struct):
    """The task that a human is to look at, and its output."""

    task: str
    output: str


class TaskView(msgspec.Struct):
    """A task of a run; `status` is pending, running, finished, awaiting_human or skipped.

    A replayed task was finished by an earlier attempt at the run.
    """

    name: str
    agent: str
    status: str
    replayed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None


class DeliveryView(msgspec.Struct):
    """What one of the run's webhooks was told, or is to be told.

    `id` is what it gets as `webhook-id`, `role` is `run` for a `webhook_url`. `last_result` is how
    the last attempt ended: an HTTP status, or a word on why there was none. `next_attempt_at` is
    None when there will be no more.
    """

    id: str
    role: str
    event: str
    host: str
    status: DeliveryStatus
    attempts: int
    last_result: str | None
    created_at: datetime
    attempted_at: datetime | None
    next_attempt_at: datetime | None


class RunSummary(msgspec.Struct):
    """A run as lists show it."""

    run_id: UUID
    crew: str
    status: RunStatus
    inputs: dict[str, Any]
    error: str | None
    error_type: str | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    waited_seconds: float | None
    usage: dict[str, int] | None


class RunView(RunSummary):
    """A run with its tasks and webhooks, what it waits for a human about, and its outputs once it
    has succeeded.
    """

    outputs: dict[str, str] | None
    awaiting: AwaitingView | None
    tasks: list[TaskView]
    webhooks: list[DeliveryView]


class RunList(msgspec.Struct):
    """Runs, newest first; `next_cursor` asks for those after them."""

    runs: list[RunSummary]
    next_cursor: str | None


_UNKNOWN = "There is no such run"
_NOT_NOW = "Not now: Retry-After says when"


@post(
    "/",
    status_code=202,
    summary="Start a run",
    responses=error_answers(
        {404: "No such crew", 409: "The key was used otherwise", 503: _NOT_NOW}
    ),
)
async def start_run(
    data: JSONBody[RunRequest],
    state: State,
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
    """Accepted when this answers: the run will be carried to its end."""
    runs: RunService = state.runs
    options = RunOptions(data.stream, idempotency_key, webhooks_at(data.webhook_url))
    run = await runs.submit(data.crew, data.inputs, request.user, options)
    headers = {"Location": run_location(run.run_id)}
    return Response(await _view(runs, run), status_code=202, headers=headers)


@post(
    "/batch",
    status_code=202,
    summary="Start a run for each of many inputs",
    request_max_body_size=_MAX_BATCH_BODY_BYTES,
    responses=error_answers({404: "No such crew", 413: "Too large", 503: _NOT_NOW}),
)
async def start_batch(
    data: JSONBody[BatchRequest], state: State, request: CallerRequest
) -> BatchAnswer:
    """All of them are accepted, or none."""
    runs: RunService = state.runs
    accepted = await runs.submit_many(
        data.crew, data.inputs, request.user, webhook_url=data.webhook_url
    )
    return BatchAnswer([run.run_id for run in accepted])


@get("/", summary="List runs, newest first", responses=error_answers({}))
async def list_runs(
    state: State,
    request: CallerRequest,
    crew: FromQuery[str | None] = None,
    status: FromQuery[RunStatus | None] = None,
    created_from: _Time = None,
    created_before: _Time = None,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
) -> RunList:
    runs: RunService = state.runs
    wanted = RunFilter(
        crew=crew,
        status=status,
        created_from=_time("created_from", created_from),
        created_before=_time("created_before", created_before),
    )
    page = await runs.page(wanted, cursor, limit, request.user)
    return RunList([_summary(run) for run in page.runs], page.next_cursor)


@get("/{run_id:uuid}", summary="A run as it stands", responses=error_answers({404: _UNKNOWN}))
async def get_run(run_id: FromPath[UUID], state: State, request: CallerRequest) -> RunView:
    runs: RunService = state.runs
    return await _view(runs, await runs.get(run_id, request.user))


@post(
    "/{run_id:uuid}/cancel",
    status_code=200,
    summary="Stop a run",
    responses=error_answers({404: _UNKNOWN}),
)
async def cancel_run(run_id: FromPath[UUID], state: State, request: CallerRequest) -> RunView:
    """Its model connections are closed and its outputs deleted; a settled run stays as it is."""
    runs: RunService = state.runs
    await runs.cancel(run_id, request.user)
    return await _view(runs, await runs.get(run_id, request.user))


@post(
    "/{run_id:uuid}/resume",
    status_code=200,
    summary="Say what a human thinks of a task's output",
    responses=error_answers({404: _UNKNOWN, 503: _NOT_NOW}),
)
async def resume_run(
    request: CallerRequest, run_id: FromPath[UUID], data: JSONBody[HumanAnswer], state: State
) -> RunView:
    """Of two answers at once, one counts; a run that doesn't wait for it answers 400."""
    runs: RunService = state.runs
    await runs.resume(ReviewDecision(run_id, data.task, data.feedback, data.approve), request.user)
    return await _view(runs, await runs.get(run_id, request.user))


@delete(
    "/{run_id:uuid}",
    summary="Delete a settled run with all it has",
    responses=error_answers({404: _UNKNOWN, 409: "The run is not settled"}),
)
async def delete_run(run_id: FromPath[UUID], state: State, request: CallerRequest) -> None:
    runs: RunService = state.runs
    await runs.delete(run_id, request.user)


@get(
    "/{run_id:uuid}/outputs/{name:str}",
    summary="One output of a run that succeeded",
    media_type=MediaType.TEXT,
    responses=error_answers({404: "There is no such run or output"}),
)
async def get_output(
    run_id: FromPath[UUID],
    name: FromPath[str],
    state: State,
    request: CallerRequest,
    as_: Annotated[Literal["markdown", "html"], QueryParameter(name="as")] = "markdown",
) -> Response[str]:
    """As a markdown file, or as a fragment of HTML that is safe to show."""
    runs: RunService = state.runs
    run = await runs.get(run_id, request.user)
    text = (run.outputs or {}).get(name)
    if text is None:
        raise UnknownOutput(f"run {run_id} is {run.status} and has no output of that name")
    if as_ == "html":
        return Response(to_safe_html(text), media_type="text/html; charset=utf-8")
    filename = OutputKey.filename_from(name)
    headers = {"Content-Disposition": f'attachment; filename="{filename}.md"'}
    return Response(text, media_type="text/markdown; charset=utf-8", headers=headers)


@get(
    "/{run_id:uuid}/events",
    summary="What happens in a run, as server-sent events",
    responses=error_answers({404: _UNKNOWN}),
)
async def watch_run(
    run_id: FromPath[UUID],
    state: State,
    request: CallerRequest,
    last_event_id: Annotated[
        str | None, HeaderParameter(name="Last-Event-ID", pattern="^[0-9]{1,18}$")
    ] = None,
) -> Stream:
    """Stored events after `Last-Event-ID`, then what comes, until the run is settled."""
    runs: RunService = state.runs
    events = runs.subscribe(
        run_id,
        request.user,
        after_seq=-1 if last_event_id is None else int(last_event_id),
        heartbeat_seconds=_HEARTBEAT_SECONDS,
    )
    await anext(events)  # an unknown run is answered before the stream begins
    return Stream(
        _server_sent(events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


runs_router = Router(
    "/api/runs",
    route_handlers=[
        start_run,
        start_batch,
        list_runs,
        get_run,
        cancel_run,
        resume_run,
        delete_run,
        get_output,
        watch_run,
    ],
    tags=["runs"],
)


async def _server_sent(happened: AsyncIterator[Sequence[Event]]) -> AsyncIterator[bytes]:
    async for events in happened:
        # Written together: to write to a client costs more than all the rest of an event.
        yield b"".join(map(_as_server_sent, events)) or b": still here\n\n"


def _as_server_sent(event: Event) -> bytes:
    number = b"" if event.seq is None else b"id: %d\n" % event.seq
    data = msgspec.json.encode({"run_id": event.run_id, "at": event.at, **event.data})
    return b"%bevent: %b\ndata: %b\n\n" % (number, event.type.encode(), data)


async def _view(runs: RunService, run: Run) -> RunView:
    tasks = [msgspec.convert(task, TaskView) for task in await runs.tasks(run)]
    webhooks = [_delivery(delivery) for delivery in await runs.deliveries(run)]
    human = run.awaiting
    return RunView(
        **_summary_fields(run),
        outputs=run.outputs,
        awaiting=AwaitingView(human.task, human.output) if human is not None else None,
        tasks=tasks,
        webhooks=webhooks,
    )


def _time(name: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        time: datetime = msgspec.convert(text, Annotated[datetime, msgspec.Meta(tz=True)])
    except msgspec.ValidationError:
        problem = "not a time with its zone, such as 2030-01-31T12:00:00Z"
        raise InvalidInput(name, problem) from None
    return time


def _delivery(delivery: Delivery) -> DeliveryView:
    return DeliveryView(
        id=delivery.id,
        role=delivery.role,
        event=delivery.event,
        host=delivery.host,
        status=delivery.status,
        attempts=delivery.attempts,
        last_result=delivery.last_result,
        created_at=delivery.created_at,
        attempted_at=delivery.attempted_at,
        next_attempt_at=delivery.due_at,
    )


def _summary(run: ListedRun) -> RunSummary:
    return RunSummary(**_summary_fields(run))


def _summary_fields(run: ListedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "crew": run.crew,
        "status": run.status,
        "inputs": run.inputs,
        "error": run.error,
        "error_type": run.error_type,
        "attempt": run.attempt,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "waited_seconds": run.waited_seconds,
        "usage": run.usage,
    }
