"""`/runs/{run_id}`: a run as it happens and its reports; cancel, retry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from litestar import get, post
from litestar.di import NamedDependency
from litestar.exceptions import NotFoundException
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect, Template
from markupsafe import Markup

from app.api.dependencies import Runs
from app.api.markdown import HtmlRenderer
from app.api.middleware.auth import CallerRequest
from app.api.middleware.csrf import FORM
from app.prices import nanos, usd
from app.runs import (
    Delivery,
    QueueReason,
    Run,
    RunFilter,
    RunService,
    RunStatus,
    advice,
    seconds_between,
    summary,
)
from app.web.forms import read_form
from app.web.rendering import FRAGMENT, page
from app.web.reports import Report, report_html, report_text, reports_of
from app.web.timeline import Timeline, timeline

_MAX_CALLS: Final = 300
_MAX_QUEUED: Final = 50


@dataclass(frozen=True, slots=True)
class RunPage:
    """A run with all that its page shows, but the text of a report."""

    run: Run
    summary: str
    advice: str | None
    queue_reason: QueueReason | None
    queued_before: int
    has_more_calls: bool
    seconds: float | None
    timeline: Timeline
    reports: Sequence[Report]
    deliveries: Sequence[Delivery]

    @property
    def tokens(self) -> int | None:
        """The tokens that the run has used; None before its first report of them."""
        usage = self.run.usage
        if usage is None:
            return sum(lane.tokens for lane in self.timeline.lanes) or None
        return usage.get("total_tokens")

    @property
    def model_calls(self) -> int:
        """The calls to models so far, in all attempts."""
        return sum(c.kind == "model" for lane in self.timeline.lanes for c in lane.calls)

    @property
    def cost(self) -> float | None:
        """The cost so far in USD; None if no call has a price."""
        if self.run.cost is not None:
            return self.run.cost
        costs = [nanos(lane.cost) for lane in self.timeline.lanes if lane.cost is not None]
        return usd(sum(costs)) if costs else None

    @property
    def shown(self) -> Report | None:
        """The report that the page shows first: of a settled run the last one."""
        if self.run.is_settled:
            written = (one for one in reversed(self.reports) if one.is_written)
            return next(written, self._first)
        by_status: Mapping[str, Report] = {one.status: one for one in reversed(self.reports)}
        for status in ("awaiting_human", "running", "finished"):
            if status in by_status:
                return by_status[status]
        return self._first

    @property
    def _first(self) -> Report | None:
        return next(iter(self.reports), None)


@get("/runs/{run_id:uuid}")
async def show_run(
    run_id: FromPath[UUID],
    request: CallerRequest,
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
    report: FromQuery[int | None] = None,
) -> Template:
    """`report` is the index of the task whose report is shown."""
    view = await _view(runs, run_id, request)
    shown = _shown(view, report)
    html = await _html(runs, renderer, view.run, shown)
    return page(request, "run.html", view=view, run=view.run, shown=shown, html=html)


@get("/runs/{run_id:uuid}/live", opt=FRAGMENT)
async def live_run(
    run_id: FromPath[UUID],
    request: CallerRequest,
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
    report: FromQuery[int | None] = None,
    has: FromQuery[str] = "",
) -> Template:
    """The parts of the page that change while the run is under way.

    The shown report is one of them, unless the page has it: `has` is its index and state, such as
    `2.running`.
    """
    view = await _view(runs, run_id, request)
    shown = _shown(view, report)
    is_new = shown is not None and has != f"{shown.index}.{shown.status}"
    html = await _html(runs, renderer, view.run, shown) if is_new else None
    return page(
        request,
        "run_live.html",
        view=view,
        run=view.run,
        shown=shown,
        html=html,
        is_new=is_new,
    )


@get("/runs/{run_id:uuid}/reports/{index:int}", opt=FRAGMENT)
async def show_report(
    run_id: FromPath[UUID],
    index: FromPath[int],
    request: CallerRequest,
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
) -> Template:
    """One report, as a part of the page."""
    run = await runs.get(run_id, request.user)
    shown = _report(await reports_of(runs, run, await runs.tasks(run)), run_id, index)
    html = await _html(runs, renderer, run, shown)
    return page(request, "run_report.html", run=run, shown=shown, html=html)


@get("/runs/{run_id:uuid}/print")
async def print_run(
    run_id: FromPath[UUID],
    request: CallerRequest,
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
) -> Template:
    """The whole run as one document."""
    run = await runs.get(run_id, request.user)
    texts = dict(await runs.outputs(run) or {})
    if run.awaiting is not None:
        texts[run.awaiting.task] = run.awaiting.output
    names = [task["name"] for task in await runs.tasks(run)]
    parts = [(name, await report_html(renderer, texts[name])) for name in names if name in texts]
    return page(request, "run_print.html", run=run, summary=summary(run), parts=parts)


@post("/runs/{run_id:uuid}/cancel", opt=FORM, status_code=303)
async def cancel(run_id: FromPath[UUID], request: CallerRequest, runs: Runs) -> Redirect:
    form = await read_form(request)
    await runs.cancel(run_id, request.user, form.get("reason", ""))
    return Redirect(f"/runs/{run_id}", status_code=303)


@post("/runs/{run_id:uuid}/retry", opt=FORM, status_code=303)
async def retry(run_id: FromPath[UUID], request: CallerRequest, runs: Runs) -> Redirect:
    await read_form(request)
    await runs.retry(run_id, request.user)
    return Redirect(f"/runs/{run_id}", status_code=303)


async def _view(runs: RunService, run_id: UUID, request: CallerRequest) -> RunPage:
    run = await runs.get(run_id, request.user)
    tasks = await runs.tasks(run)
    calls = await runs.calls_of(run, request.user, cursor=None, limit=_MAX_CALLS, texts=False)
    return RunPage(
        run=run,
        summary=summary(run),
        advice=advice(run),
        queue_reason=await runs.queue_reason(run),
        queued_before=await _queued_before(runs, run, request),
        has_more_calls=calls.next_cursor is not None,
        seconds=seconds_between(run.started_at, run.finished_at),
        timeline=timeline(run, tasks, [call for call, _ in calls.calls]),
        reports=await reports_of(runs, run, tasks),
        deliveries=await runs.deliveries(run),
    )


async def _queued_before(runs: RunService, run: Run, request: CallerRequest) -> int:
    """How many of the caller's runs that were submitted before also wait for a slot."""
    if run.status is not RunStatus.QUEUED:
        return 0
    matching = RunFilter(statuses=(RunStatus.QUEUED,), created_before=run.created_at)
    return len((await runs.page(matching, None, _MAX_QUEUED, request.user)).runs)


def _shown(view: RunPage, index: int | None) -> Report | None:
    return view.shown if index is None else _report(view.reports, view.run.run_id, index)


def _report(reports: Sequence[Report], run_id: UUID, index: int) -> Report:
    if not 0 <= index < len(reports):
        raise NotFoundException(f"run {run_id} has no task {index}")
    return reports[index]


async def _html(
    runs: RunService, renderer: HtmlRenderer, run: Run, shown: Report | None
) -> Markup | None:
    if shown is None or not shown.is_written:
        return None
    text = await report_text(runs, run, shown.name)
    return None if text is None else await report_html(renderer, text)
