"""`/api/batches`: the runs that one request has submitted together: list, inspect, cancel."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, QueryParameter

from app.api.errors import error_responses
from app.api.links import linked, links_to_batch
from app.api.middleware.auth import CallerRequest
from app.runs import Batch, Batches

_UNKNOWN = "There is no such batch"


class BatchCounts(msgspec.Struct):
    """The number of a batch's runs in each status."""

    queued: int = 0
    running: int = 0
    awaiting_human: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0


class BatchView(msgspec.Struct):
    """A batch of runs of one crew.

    `finished_at` is null until all runs are settled. `runs_path` lists the runs.
    """

    batch_id: UUID
    crew: str
    runs: int
    counts: BatchCounts
    created_at: datetime
    finished_at: datetime | None
    runs_path: str


class BatchList(msgspec.Struct):
    """Batches, newest first; pass `next_cursor` as `cursor` for the next page."""

    batches: list[BatchView]
    next_cursor: str | None


@get(
    "/",
    summary="List batches, newest first",
    operation_class=linked(links_to_batch("/batches/0/batch_id")),
    responses=error_responses({}),
)
async def list_batches(
    batches: NamedDependency[Batches],
    request: CallerRequest,
    cursor: FromQuery[str | None] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=50)] = 20,
) -> BatchList:
    page = await batches.page(cursor, limit, request.user)
    return BatchList([_view(batch) for batch in page.batches], page.next_cursor)


@get("/{batch_id:uuid}", summary="Get a batch", responses=error_responses({404: _UNKNOWN}))
async def get_batch(
    batch_id: FromPath[UUID], batches: NamedDependency[Batches], request: CallerRequest
) -> BatchView:
    """A batch whose runs are deleted no longer exists."""
    return _view(await batches.get(batch_id, request.user))


@post(
    "/{batch_id:uuid}/cancel",
    status_code=200,
    summary="Cancel the runs of a batch that are not settled",
    responses=error_responses({404: _UNKNOWN}),
)
async def cancel_batch(
    batch_id: FromPath[UUID],
    batches: NamedDependency[Batches],
    request: CallerRequest,
    reason: FromQuery[str] = "",
) -> BatchView:
    """Each run is cancelled as by its own `cancel`. Settled runs stay as they are."""
    await batches.cancel(batch_id, request.user, reason)
    return _view(await batches.get(batch_id, request.user))


batches_router = Router(
    "/api/batches", route_handlers=[list_batches, get_batch, cancel_batch], tags=["batches"]
)


def _view(batch: Batch) -> BatchView:
    return BatchView(
        batch_id=batch.batch_id,
        crew=batch.crew,
        runs=sum(batch.counts.values()),
        counts=BatchCounts(**{status.value: count for status, count in batch.counts.items()}),
        created_at=batch.created_at,
        finished_at=batch.finished_at,
        runs_path=f"/api/runs?batch={batch.batch_id}",
    )
