"""`/crews` and `/crews/NAME`: a crew's inputs, tasks, execution mode, fingerprint and models."""

from litestar import get
from litestar.params import FromPath
from litestar.response import Template

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.web.rendering import page


@get("/crews")
async def list_crews(request: CallerRequest, runs: Runs) -> Template:
    return page(request, "crew_list.html", crews=runs.crews())


@get("/crews/{name:str}")
async def show_crew(request: CallerRequest, name: FromPath[str], runs: Runs) -> Template:
    return page(request, "crew.html", crew=runs.crew(name))
