"""`/api/schedules`: runs at the times of a cron expression: create, inspect, change, pause, run."""

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from app.api.dependencies import Runs
from app.api.errors import error_responses, run_location
from app.api.links import linked, links_to_run, links_to_schedule
from app.api.middleware.auth import CallerRequest
from app.api.order_fields import Priority
from app.api.views import RunView, run_view
from app.runs import METADATA_LIMITS
from app.schedules import (
    MAX_TIMES,
    Misfire,
    Overlap,
    Schedule,
    ScheduleService,
    description,
)

_UNKNOWN: Final = "There is no such schedule"
_NO_RUN: Final = "Nothing was accepted; Retry-After says when to try again"

Schedules = NamedDependency[ScheduleService]
Metadata = Annotated[dict[str, str], msgspec.Meta(description=METADATA_LIMITS)]


class ScheduleRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A schedule to create: `cron` has five fields, and times are those of `time_zone` (IANA).

    `misfire` is for due times that were missed, `overlap` for a run that has not ended at the next
    due time. The other fields are those of the runs.
    """

    crew: str
    cron: str
    name: str = ""
    inputs: dict[str, Any] = msgspec.field(default_factory=dict)
    time_zone: str = "UTC"
    misfire: Misfire = Misfire.RUN_ONCE
    overlap: Overlap = Overlap.SKIP
    priority: Priority = 0
    webhook_url: str | None = None
    metadata: Metadata = msgspec.field(default_factory=dict)
    paused: bool = False


class ScheduleUpdate(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The fields to change; the others stay. New times count from now."""

    crew: str | msgspec.UnsetType = msgspec.UNSET
    cron: str | msgspec.UnsetType = msgspec.UNSET
    name: str | msgspec.UnsetType = msgspec.UNSET
    inputs: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    time_zone: str | msgspec.UnsetType = msgspec.UNSET
    misfire: Misfire | msgspec.UnsetType = msgspec.UNSET
    overlap: Overlap | msgspec.UnsetType = msgspec.UNSET
    priority: Priority | msgspec.UnsetType = msgspec.UNSET
    webhook_url: str | msgspec.UnsetType | None = msgspec.UNSET
    metadata: Metadata | msgspec.UnsetType = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET


class ScheduleView(msgspec.Struct, kw_only=True):
    """A schedule.

    `description` is the expression in English. `next_due` is null while the schedule is paused.
    `last_due` is the last due time that has a run. `last_error` says why the last due time has
    none; null if it has one. `waits`: a run is due, and waits for the end of an earlier one.
    `runs_path` lists the runs.
    """

    schedule_id: UUID
    name: str
    crew: str
    inputs: dict[str, Any]
    cron: str
    description: str
    time_zone: str
    misfire: Misfire
    overlap: Overlap
    priority: int
    webhook_url: str | None
    metadata: dict[str, str]
    paused: bool
    waits: bool
    next_due: datetime | None
    last_due: datetime | None
    last_error: str | None
    created_at: datetime
    runs_path: str


class ScheduleList(msgspec.Struct):
    """Schedules, newest first; pass `next_cursor` as `cursor` for the next page."""

    schedules: list[ScheduleView]
    next_cursor: str | None


class ScheduleTimes(msgspec.Struct):
    """The next times of a schedule, in UTC."""

    times: list[datetime]


@post(
    "/",
    status_code=201,
    summary="Create a schedule",
    operation_class=linked(links_to_schedule("/schedule_id")),
    responses=error_responses({404: "No such crew"}),
)
async def create_schedule(
    data: JSONBody[ScheduleRequest], schedules: Schedules, request: CallerRequest
) -> Response[ScheduleView]:
    """Each due time has exactly one run, however many processes the service has."""
    schedule = await schedules.create(msgspec.structs.asdict(data), request.user)
    location = f"/api/schedules/{schedule.schedule_id}"
    return Response(_view(schedule), status_code=201, headers={"Location": location})


@get(
    "/",
    summary="List schedules, newest first",
    operation_class=linked(links_to_schedule("/schedules/0/schedule_id")),
    responses=error_responses({}),
)
async def list_schedules(
    schedules: Schedules,
    request: CallerRequest,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
) -> ScheduleList:
    page = await schedules.page(cursor, limit, request.user)
    return ScheduleList([_view(schedule) for schedule in page.schedules], page.next_cursor)


@get("/{schedule_id:uuid}", summary="Get a schedule", responses=error_responses({404: _UNKNOWN}))
async def get_schedule(
    schedule_id: FromPath[UUID], schedules: Schedules, request: CallerRequest
) -> ScheduleView:
    return _view(await schedules.get(schedule_id, request.user))


@patch(
    "/{schedule_id:uuid}",
    summary="Change fields of a schedule",
    responses=error_responses({404: "There is no such schedule or crew"}),
)
async def update_schedule(
    schedule_id: FromPath[UUID],
    data: JSONBody[ScheduleUpdate],
    schedules: Schedules,
    request: CallerRequest,
) -> ScheduleView:
    given = msgspec.structs.asdict(data).items()
    changes = {name: value for name, value in given if value is not msgspec.UNSET}
    return _view(await schedules.change(schedule_id, changes, request.user))


@delete(
    "/{schedule_id:uuid}",
    summary="Delete a schedule; its runs stay",
    responses=error_responses({404: _UNKNOWN}),
)
async def delete_schedule(
    schedule_id: FromPath[UUID], schedules: Schedules, request: CallerRequest
) -> None:
    await schedules.delete(schedule_id, request.user)


@post(
    "/{schedule_id:uuid}/pause",
    status_code=200,
    summary="Pause a schedule",
    responses=error_responses({404: _UNKNOWN}),
)
async def pause_schedule(
    schedule_id: FromPath[UUID], schedules: Schedules, request: CallerRequest
) -> ScheduleView:
    """It has no due times until it is resumed. Its runs continue."""
    return _view(await schedules.change(schedule_id, {"paused": True}, request.user))


@post(
    "/{schedule_id:uuid}/resume",
    status_code=200,
    summary="Resume a paused schedule",
    responses=error_responses({404: _UNKNOWN}),
)
async def resume_schedule(
    schedule_id: FromPath[UUID], schedules: Schedules, request: CallerRequest
) -> ScheduleView:
    """Its next time counts from now: due times during the pause have no run."""
    return _view(await schedules.change(schedule_id, {"paused": False}, request.user))


@post(
    "/{schedule_id:uuid}/run",
    status_code=202,
    summary="Submit a run of a schedule now",
    operation_class=linked(links_to_run("/run_id")),
    responses=error_responses(
        {
            404: "There is no such schedule or crew",
            409: "The API key of the schedule is revoked",
            503: _NO_RUN,
        }
    ),
)
async def run_schedule(
    schedule_id: FromPath[UUID], schedules: Schedules, runs: Runs, request: CallerRequest
) -> Response[RunView]:
    """The run belongs to the owner of the schedule. The due times stay as they are."""
    run = await schedules.run_now(schedule_id, request.user)
    headers = {"Location": run_location(run.run_id)}
    return Response(await run_view(runs, run, request.user), status_code=202, headers=headers)


@get(
    "/{schedule_id:uuid}/times",
    summary="List the next times of a schedule",
    responses=error_responses({404: _UNKNOWN}),
)
async def list_schedule_times(
    schedule_id: FromPath[UUID],
    schedules: Schedules,
    request: CallerRequest,
    count: Annotated[int, QueryParameter(ge=1, le=MAX_TIMES)] = 10,
) -> ScheduleTimes:
    """Also while it is paused: they are the times that it would have."""
    return ScheduleTimes(list(await schedules.times(schedule_id, count, request.user)))


schedules_router = Router(
    "/api/schedules",
    route_handlers=[
        create_schedule,
        list_schedules,
        get_schedule,
        update_schedule,
        delete_schedule,
        pause_schedule,
        resume_schedule,
        run_schedule,
        list_schedule_times,
    ],
    tags=["schedules"],
)


def _view(schedule: Schedule) -> ScheduleView:
    shared = ScheduleView.__struct_fields__
    fields = {name: getattr(schedule, name) for name in shared if hasattr(schedule, name)}
    return ScheduleView(
        **{**fields, "metadata": dict(schedule.metadata)},
        description=description(schedule.cron),
        runs_path=f"/api/runs?schedule={schedule.schedule_id}",
    )
