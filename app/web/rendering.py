"""Templates, and the headers of every page."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from litestar import MediaType, Request
from litestar.plugins.jinja import JinjaTemplateEngine
from litestar.response import Template
from litestar.template import TemplateConfig

from app.access.callers import Caller
from app.access.sessions import Session
from app.db import DatabaseUnavailable
from app.runs import MAX_COUNTED_REVIEWS, RunService
from app.version import VERSION
from app.web import formats
from app.web.assets import asset_path

PAGE: Final = {"page": True}
"""The `opt` of handlers whose responses are pages: their errors are pages, too."""

FRAGMENT: Final = {"fragment": True}
"""The `opt` of handlers whose responses are parts of pages, without the layout."""

HEADERS: Final = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
        )
    ),
    # Browsers name the origin of a form only if it may be its referrer.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""The headers of every page. Nothing is loaded from another host, no script or style is inline."""


class NavigationItem(NamedTuple):
    """A link of the navigation: `is_current` marks the section of the page.

    `badge` is a text beside the label; None for a link that has none.
    """

    path: str
    label: str
    is_current: bool
    badge: str | None


class _Section(NamedTuple):
    path: str
    label: str
    for_admins: bool = False
    with_keys: bool = False


_INBOX: Final = "/inbox"
_SECTIONS: Final = (
    _Section("/", "New run"),
    _Section("/runs", "Runs"),
    _Section(_INBOX, "Inbox"),
    _Section("/crews", "Crews"),
    _Section("/ops", "Operations", for_admins=True),
    _Section("/keys", "Keys", for_admins=True, with_keys=True),
)


async def count_inbox(request: Request[Any, Any, Any]) -> None:
    """Count the runs that wait for a human, for the layout: Litestar's `before_request` hook."""
    opt = request.route_handler.opt
    if not (opt.get("public") or opt.get("fragment")):
        with suppress(DatabaseUnavailable):  # the page may not need the database
            request.state.inbox_badge = await inbox_badge(request.app.state.runs, request.user)


async def inbox_badge(runs: RunService, caller: Caller) -> str:
    """The number of runs that wait for a human; empty for none."""
    waiting = await runs.awaiting_human(caller)
    is_bound = waiting >= MAX_COUNTED_REVIEWS
    return f"{MAX_COUNTED_REVIEWS - 1}+" if is_bound else str(waiting or "")


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "moment": formats.moment,
        "duration": formats.duration,
        "money": formats.money,
        "count": formats.count,
        "size": formats.size,
        "label": formats.label,
        "state": formats.state,
        "fields": msgspec.structs.asdict,
    }
    environment.globals |= {"asset": asset_path, "version": VERSION}
    return environment


TEMPLATES: Final = TemplateConfig(instance=JinjaTemplateEngine.from_environment(_environment()))
"""The application's template engine."""


def page(
    request: Request[Any, Any, Any],
    template: str,
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> Template:
    """A page: the template within the layout, with what the layout needs."""
    # A request without a route has passed no middleware.
    caller: Caller | None = request.scope.get("user")
    session: Session | None = request.scope.get("auth")
    is_known = caller is not None and (caller.owner is not None or caller.is_admin)
    return Template(
        template,
        status_code=status_code,
        media_type=MediaType.HTML,
        headers={**HEADERS, **(headers or {})},
        context={
            "navigation": list(_navigation(request, caller)) if caller and is_known else [],
            "caller": caller,
            "session": session,
            "csrf_token": session.csrf_token if session else "",
            **context,
        },
    )


def _navigation(request: Request[Any, Any, Any], caller: Caller) -> Iterator[NavigationItem]:
    path = request.scope["path"]
    for section in _SECTIONS:
        is_shown = caller.is_admin or not section.for_admins
        if is_shown and (caller.owner is not None or not section.with_keys):
            is_current = path == section.path or (
                section.path != "/" and path.startswith(f"{section.path}/")
            )
            badge = request.state.get("inbox_badge", "") if section.path == _INBOX else None
            yield NavigationItem(section.path, section.label, is_current, badge)
