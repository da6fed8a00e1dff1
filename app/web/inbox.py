"""`/inbox`: runs that wait for a human: approve an output, or send it back with words."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from litestar import MediaType, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery
from litestar.response import Redirect, Template
from markupsafe import Markup

from app.api.dependencies import Runs
from app.api.markdown import HtmlRenderer
from app.api.middleware.auth import CallerRequest
from app.api.middleware.csrf import FORM
from app.runs import (
    HumanInput,
    InvalidInput,
    NotAwaitingHuman,
    ReviewDecision,
    Run,
    RunFilter,
    RunService,
    RunStatus,
    UnknownRun,
)
from app.web.forms import read_form
from app.web.rendering import FRAGMENT, inbox_badge, page
from app.web.reports import report_html

_ITEMS: Final = 20
_WAITING: Final = RunFilter(statuses=(RunStatus.AWAITING_HUMAN,))


@dataclass(frozen=True, slots=True)
class InboxItem:
    """A run that waits, and the output to review as safe HTML."""

    run: Run
    review: HumanInput
    output: Markup


@get("/inbox")
async def show_inbox(
    request: CallerRequest,
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
    cursor: FromQuery[str | None] = None,
    done: FromQuery[UUID | None] = None,
) -> Template:
    """`done` is the run that was reviewed last: a notice links to it."""
    return await _inbox(request, runs, renderer, cursor=cursor or None, done=done)


@get("/inbox/count", opt=FRAGMENT, media_type=MediaType.TEXT)
async def show_inbox_count(request: CallerRequest, runs: Runs) -> str:
    """The badge of the inbox in the navigation."""
    return await inbox_badge(runs, request.user)


@get("/inbox/{run_id:uuid}", opt=FRAGMENT)
async def show_review(
    request: CallerRequest,
    run_id: FromPath[UUID],
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
) -> Template:
    """One run's item without the rest of the page, for a run that waits again."""
    items = await _items([run_id], runs, renderer, request)
    if not items:
        raise NotAwaitingHuman(f"run {run_id} waits for no human")
    return page(request, "inbox_item.html", item=items[0], problem="", words="")


@post("/inbox/{run_id:uuid}", opt=FORM, status_code=303)
async def review(
    request: CallerRequest,
    run_id: FromPath[UUID],
    runs: Runs,
    renderer: NamedDependency[HtmlRenderer],
) -> Template | Redirect:
    form = await read_form(request)
    approve, words = form.get("decision") == "approve", form.get("feedback", "")
    try:
        if not approve and not words.strip():
            raise InvalidInput("feedback", "say what to change, so that the task can do it")
        decision = ReviewDecision(run_id, form.get("task"), words, approve)
        await runs.resume(decision, request.user)
    except (InvalidInput, NotAwaitingHuman) as error:
        return await _inbox(
            request, runs, renderer, problem=str(error), problem_of=run_id, words=words
        )
    return Redirect(f"/inbox?done={run_id}", status_code=303)


async def _inbox(
    request: CallerRequest,
    runs: RunService,
    renderer: HtmlRenderer,
    *,
    cursor: str | None = None,
    done: UUID | None = None,
    problem: str = "",
    problem_of: UUID | None = None,
    words: str = "",
) -> Template:
    found = await runs.page(_WAITING, cursor, _ITEMS, request.user)
    items = await _items([run.run_id for run in found.runs], runs, renderer, request)
    next_ = f"/inbox?cursor={found.next_cursor}" if found.next_cursor else None
    return page(
        request,
        "inbox.html",
        status_code=400 if problem else 200,
        items=items,
        done=done,
        problem=problem,
        problem_of=problem_of,
        words=words,
        first="/inbox" if cursor else None,
        next=next_,
    )


async def _items(
    run_ids: Sequence[UUID], runs: RunService, renderer: HtmlRenderer, request: CallerRequest
) -> list[InboxItem]:
    """The runs that still wait."""
    items = await asyncio.gather(*(_item(run_id, runs, renderer, request) for run_id in run_ids))
    return [item for item in items if item is not None]


async def _item(
    run_id: UUID, runs: RunService, renderer: HtmlRenderer, request: CallerRequest
) -> InboxItem | None:
    try:
        run = await runs.get(run_id, request.user)
    except UnknownRun:  # deleted since
        return None
    awaited = run.awaiting
    if awaited is None:
        return None
    return InboxItem(run, awaited, await report_html(renderer, awaited.output))
