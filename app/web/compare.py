"""`/runs/{run_id}/compare`: two runs side by side, with the differences of their texts."""

import asyncio
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID

from litestar import get
from litestar.params import FromPath, QueryParameter
from litestar.response import Template
from markupsafe import Markup, escape

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.runs import ListedRun, Run, RunFilter, RunService, seconds_between, summary
from app.web.formats import text_of
from app.web.rendering import page

_CANDIDATES: Final = 20
# Comparing needs time that grows with the product of the lines, and of the words, of both texts.
_MAX_LINES: Final = 1000
_MAX_STEPS: Final = 4_000_000
_CONTEXT: Final = 3
_WORDS: Final = re.compile(r"\s+|\w+|[^\w\s]")


class _Budget:
    """The steps that the comparison of two runs may need; it bounds the time of a page."""

    def __init__(self) -> None:
        self._steps = _MAX_STEPS

    def allows(self, left: Sequence[str], right: Sequence[str]) -> bool:
        """Whether these parts can be compared; counts the steps if they can."""
        steps = len(left) * len(right)
        if steps > self._steps:
            return False
        self._steps -= steps
        return True


class Row(NamedTuple):
    """Two lines side by side; `kind` is same, changed, removed, added or gap."""

    kind: str
    left: Markup
    right: Markup


class Comparison(NamedTuple):
    """A text of both runs. `rows` is None for equal texts, `is_cut` if the rest is left out."""

    name: str
    rows: Sequence[Row] | None
    is_cut: bool = False


class Fact(NamedTuple):
    """A number of both runs, and the change from the first to the second in percent."""

    name: str
    left: float | None
    right: float | None
    kind: str

    @property
    def change(self) -> str:
        """The change in words; empty if there is none."""
        if self.left is None or self.right is None or self.left == self.right:
            return ""
        if self.left == 0:
            return "more"
        change = f"{(self.right - self.left) / self.left:+.0%}"
        return "" if change in ("+0%", "-0%") else change


@get("/runs/{run_id:uuid}/compare")
async def compare_runs(
    run_id: FromPath[UUID],
    request: CallerRequest,
    runs: Runs,
    with_: Annotated[str, QueryParameter(name="with")] = "",
) -> Template:
    """`with` is the id of the other run; without it, the page offers runs of the same crew."""
    left = await runs.get(run_id, request.user)
    other, problem = _id(with_)
    if other is None:
        context: dict[str, Any] = {"right": None, "candidates": await _others(runs, left, request)}
    else:
        context = await _compared(runs, left, await runs.get(other, request.user))
    return page(
        request,
        "compare.html",
        status_code=400 if problem else 200,
        run=left,
        left=left,
        given=with_,
        problem=problem,
        **context,
    )


async def _others(
    runs: RunService, left: Run, request: CallerRequest
) -> list[tuple[ListedRun, str]]:
    """The newest other runs of the crew, each with its summary."""
    newest = await runs.page(RunFilter(crew=left.crew), None, _CANDIDATES + 1, request.user)
    others = [run for run in newest.runs if run.run_id != left.run_id]
    return [(run, summary(run)) for run in others[:_CANDIDATES]]


def _id(text: str) -> tuple[UUID | None, str]:
    text = text.strip().rstrip("/").rsplit("/")[-1]
    if not text:
        return None, ""
    try:
        return UUID(text), ""
    except ValueError:
        return None, "That is not the id of a run."


async def _compared(runs: RunService, left: Run, right: Run) -> dict[str, Any]:
    left_outputs, right_outputs = await runs.outputs(left), await runs.outputs(right)

    def compare() -> dict[str, Sequence[Comparison]]:
        budget = _Budget()
        return {
            "inputs": _texts(_plain_inputs(left), _plain_inputs(right), budget),
            "outputs": _texts(left_outputs or {}, right_outputs or {}, budget),
        }

    return {
        "right": right,
        "summaries": (summary(left), summary(right)),
        "facts": _facts(left, right),
        **await asyncio.to_thread(compare),
    }


def _facts(left: ListedRun, right: ListedRun) -> list[Fact]:
    def fact(name: str, kind: str, value: Callable[[ListedRun], float | None]) -> Fact:
        return Fact(name, value(left), value(right), kind)

    return [
        fact("Time", "duration", lambda run: seconds_between(run.started_at, run.finished_at)),
        fact("Wait", "duration", lambda run: run.waited_seconds),
        fact("Tokens", "count", lambda run: (run.usage or {}).get("total_tokens")),
        fact("Model calls", "count", lambda run: (run.usage or {}).get("model_calls")),
        fact("Cost", "money", lambda run: run.cost),
        fact("Attempts", "count", lambda run: run.attempt),
    ]


def _plain_inputs(run: Run) -> dict[str, str]:
    return {name: text_of(value, indent=2) for name, value in run.inputs.items()}


def _texts(left: Mapping[str, str], right: Mapping[str, str], budget: _Budget) -> list[Comparison]:
    names = dict.fromkeys([*left, *right])
    return [
        _compared_texts(name, left.get(name, ""), right.get(name, ""), budget) for name in names
    ]


def _compared_texts(name: str, left: str, right: str, budget: _Budget) -> Comparison:
    """The differences of two texts by lines, and of changed lines by words."""
    if left == right:
        return Comparison(name, None)
    one, other = left.splitlines(), right.splitlines()
    lines = _MAX_LINES
    while not budget.allows(one[:lines], other[:lines]):
        lines //= 2
    rows = list(_rows(one[:lines], other[:lines], budget))
    return Comparison(name, rows, is_cut=max(len(one), len(other)) > lines)


def _rows(left: Sequence[str], right: Sequence[str], budget: _Budget) -> Iterator[Row]:
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    end = len(left)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            yield from _same(left[a:b], is_first=a == 0, is_last=b == end and d == len(right))
            continue
        common = min(b - a, d - c)
        for one, other in zip(left[a : a + common], right[c : c + common], strict=True):
            yield Row("changed", *_words(one, other, budget))
        for one in left[a + common : b]:
            yield Row("removed", _removed(one), Markup())
        for other in right[c + common : d]:
            yield Row("added", Markup(), _added(other))


def _same(lines: Sequence[str], *, is_first: bool, is_last: bool) -> Iterator[Row]:
    """Equal lines, of which long runs show only those next to differences."""
    before, after = (0 if is_first else _CONTEXT), (0 if is_last else _CONTEXT)
    if len(lines) <= before + after + 1:
        yield from (Row("same", escape(line), escape(line)) for line in lines)
        return
    yield from (Row("same", escape(line), escape(line)) for line in lines[:before])
    hidden = f"{len(lines) - before - after} equal lines"
    yield Row("gap", escape(hidden), escape(hidden))
    yield from (Row("same", escape(ln), escape(ln)) for ln in lines[len(lines) - after :])


def _words(left: str, right: str, budget: _Budget) -> tuple[Markup, Markup]:
    """Two lines with the words marked that differ."""
    one, other = _WORDS.findall(left), _WORDS.findall(right)
    if not budget.allows(one, other):
        return _removed(left), _added(right)
    before, after = Markup(), Markup()
    for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag == "equal":
            before += escape("".join(one[a:b]))
            after += escape("".join(other[c:d]))
        else:
            before += _removed("".join(one[a:b]))
            after += _added("".join(other[c:d]))
    return before, after


def _removed(text: str) -> Markup:
    return Markup("<del>{}</del>").format(text) if text else Markup()


def _added(text: str) -> Markup:
    return Markup("<ins>{}</ins>").format(text) if text else Markup()
