"""`/`: the start of a run."""

from litestar import get
from litestar.response import Template

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.web.rendering import page


@get("/")
async def new_run(request: CallerRequest, runs: Runs) -> Template:
    return page(request, "new_run.html", crews=runs.crews())
