"""Outputs of runs as reports: sanitized HTML for the pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from app.api.markdown import HtmlRenderer

# The renderer writes this tag for tables and for nothing else: texts are escaped.
_TABLE: Final = "<table>"
_TABLE_END: Final = "</table>"
# A wide table scrolls by itself, also with the keyboard.
_SCROLL: Final = '<div class="scroll" role="region" aria-label="Table" tabindex="0">'


@dataclass(frozen=True, slots=True)
class Report:
    """The output of a task; `text` is None while there is none."""

    index: int
    name: str
    status: str
    text: str | None


def reports_of(
    tasks: Sequence[Mapping[str, Any]], outputs: Mapping[str, str], awaited: tuple[str, str] | None
) -> list[Report]:
    """A report for each task; that of an awaited task has the output that awaits its review."""
    texts = {**outputs, **dict([awaited] if awaited else [])}
    return [
        Report(index, task["name"], task["status"], texts.get(task["name"]))
        for index, task in enumerate(tasks)
    ]


async def report_html(renderer: HtmlRenderer, text: str) -> Markup:
    """The text as safe HTML."""
    html = await renderer.render(text)
    html = html.replace(_TABLE, _SCROLL + _TABLE).replace(_TABLE_END, f"{_TABLE_END}</div>")
    return Markup(html)  # noqa: S704 - sanitized by the renderer
