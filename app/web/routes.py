"""The routes of the pages."""

from litestar import Router

from app.web.assets import get_asset
from app.web.calls import show_call
from app.web.compare import compare_runs
from app.web.login import log_in, log_out, show_login
from app.web.new_run import new_run, submit
from app.web.rendering import PAGE
from app.web.run import cancel, live_run, print_run, retry, show_report, show_run

web_router = Router(
    "/",
    route_handlers=[
        get_asset,
        show_login,
        log_in,
        log_out,
        new_run,
        submit,
        show_run,
        live_run,
        show_report,
        print_run,
        cancel,
        retry,
        show_call,
        compare_runs,
    ],
    opt=PAGE,
    include_in_schema=False,
)
