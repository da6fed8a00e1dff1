"""`/ops`: the service over the last hour, and its keys, for admins."""

from typing import Final

from litestar import get, post
from litestar.di import NamedDependency
from litestar.response import Template

from app.api.dependencies import Runs
from app.api.middleware.auth import FOR_ADMINS, CallerRequest
from app.api.middleware.csrf import FORM
from app.api.operations import OperationsFeed, SweepView, sweep_view
from app.runs import Sweeper
from app.web.forms import read_form
from app.web.rendering import page

_PATH: Final = "/ops"


@get(_PATH, opt=FOR_ADMINS)
async def show_operations(
    request: CallerRequest, operations: NamedDependency[OperationsFeed], runs: Runs
) -> Template:
    return await _page(request, operations, runs)


@post("/ops/sweep", opt={**FOR_ADMINS, **FORM}, status_code=200)
async def sweep(
    request: CallerRequest,
    operations: NamedDependency[OperationsFeed],
    runs: Runs,
    sweeper: NamedDependency[Sweeper],
) -> Template:
    await read_form(request)
    return await _page(request, operations, runs, sweep_view(await sweeper.sweep()))


async def _page(
    request: CallerRequest,
    operations: OperationsFeed,
    runs: Runs,
    report: SweepView | None = None,
) -> Template:
    state = await operations.state()
    return page(request, "operations.html", state=state, crews=runs.crews(), report=report)
