"""The routes of the pages."""

from litestar import Router

from app.web.assets import get_asset
from app.web.login import log_in, log_out, show_login
from app.web.new_run import new_run
from app.web.rendering import PAGE

web_router = Router(
    "/",
    route_handlers=[get_asset, show_login, log_in, log_out, new_run],
    opt=PAGE,
    include_in_schema=False,
)
