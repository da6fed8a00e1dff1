"""The routes of the pages."""

from litestar import Router

from app.web.assets import get_asset
from app.web.batches import cancel_batch, list_batches, show_batch, show_batch_rows
from app.web.calls import show_call
from app.web.compare import compare_runs
from app.web.crews import list_crews, show_crew
from app.web.inbox import review, show_inbox, show_inbox_count, show_review
from app.web.keys import create_key, revoke_key, set_limits, show_keys
from app.web.login import log_in, log_out, show_login
from app.web.new_run import new_run, submit
from app.web.operations import show_operations, sweep
from app.web.rendering import PAGE, count_inbox
from app.web.run import cancel, live_run, print_run, retry, show_report, show_run
from app.web.run_list import confirm_delete, delete_run, list_runs, show_rows

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
        list_runs,
        show_rows,
        confirm_delete,
        delete_run,
        list_batches,
        show_batch,
        show_batch_rows,
        cancel_batch,
        show_inbox,
        show_inbox_count,
        show_review,
        review,
        show_operations,
        sweep,
        show_keys,
        create_key,
        set_limits,
        revoke_key,
        list_crews,
        show_crew,
    ],
    before_request=count_inbox,
    opt=PAGE,
    include_in_schema=False,
)
