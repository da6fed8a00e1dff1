"""Outputs of runs as reports: sanitized HTML for the pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from app.api.markdown import HtmlRenderer
from app.runs import Run, RunService

# The renderer writes this tag for tables and for nothing else: texts are escaped.
_TABLE: Final = "<table>"
_TABLE_END: Final = "</table>"
# A wide table scrolls by itself, also with the keyboard.
_SCROLL: Final = '<div class="scroll" role="region" aria-label="Table" tabindex="0">'


@dataclass(frozen=True, slots=True)
class Report:
    """The output of a task, without its text; it may not be written yet."""

    index: int
    name: str
    status: str
    is_written: bool


async def reports_of(
    runs: RunService, run: Run, tasks: Sequence[Mapping[str, Any]]
) -> list[Report]:
    """A report for each task. No text is read."""
    written = set(await runs.output_names(run))
    if run.awaiting is not None:
        written.add(run.awaiting.task)
    return [
        Report(index, task["name"], task["status"], task["name"] in written)
        for index, task in enumerate(tasks)
    ]


async def report_text(runs: RunService, run: Run, name: str) -> str | None:
    """The output of a task, which may await its review; None while there is none."""
    if run.awaiting is not None and run.awaiting.task == name:
        return run.awaiting.output
    return (await runs.outputs(run, [name]) or {}).get(name)


async def report_html(renderer: HtmlRenderer, text: str) -> Markup:
    """The text as safe HTML."""
    html = await renderer.render(text)
    html = html.replace(_TABLE, _SCROLL + _TABLE).replace(_TABLE_END, f"{_TABLE_END}</div>")
    return Markup(html)  # noqa: S704 - sanitized by the renderer
