"""`/batches`: batches with their progress, their runs, and a button to cancel the rest."""

from typing import Any, Final
from uuid import UUID

from litestar import Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect, Template

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.api.middleware.csrf import FORM
from app.runs import Batches, RunStatus
from app.web.forms import read_form
from app.web.rendering import FRAGMENT, page
from app.web.run_list import rows_of_batch, rows_response

_ROWS: Final = 30


@get("/batches")
async def list_batches(
    request: CallerRequest,
    batches: NamedDependency[Batches],
    cursor: FromQuery[str | None] = None,
) -> Template:
    found = await batches.page(cursor or None, _ROWS, request.user)
    next_ = f"/batches?cursor={found.next_cursor}" if found.next_cursor else None
    return page(
        request,
        "batch_list.html",
        batches=found.batches,
        statuses=list(RunStatus),
        first="/batches" if cursor else None,
        next=next_,
    )


@get("/batches/{batch_id:uuid}")
async def show_batch(
    request: CallerRequest,
    batch_id: FromPath[UUID],
    batches: NamedDependency[Batches],
    runs: Runs,
    cursor: FromQuery[str | None] = None,
) -> Template:
    batch = await batches.get(batch_id, request.user)
    return page(
        request,
        "batch.html",
        batch=batch,
        rows=await rows_of_batch(request, runs, batch_id, cursor or None),
        statuses=list(RunStatus),
    )


@get("/batches/{batch_id:uuid}/rows", opt=FRAGMENT)
async def show_batch_rows(
    request: CallerRequest,
    batch_id: FromPath[UUID],
    runs: Runs,
    cursor: FromQuery[str | None] = None,
) -> Response[Any]:
    """The rows of the batch's runs, if they have changed."""
    return rows_response(request, await rows_of_batch(request, runs, batch_id, cursor or None))


@post("/batches/{batch_id:uuid}/cancel", opt=FORM, status_code=303)
async def cancel_batch(
    request: CallerRequest, batch_id: FromPath[UUID], batches: NamedDependency[Batches]
) -> Redirect:
    form = await read_form(request)
    await batches.cancel(batch_id, request.user, form.get("reason", ""))
    return Redirect(f"/batches/{batch_id}", status_code=303)
