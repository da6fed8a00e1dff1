"""`/runs`: runs in a list; the filters are the address. Delete a run."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from litestar import Response, get, post
from litestar.params import FromPath
from litestar.response import Redirect, Template

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.api.middleware.csrf import FORM
from app.prices import nanos
from app.runs import (
    ERROR_TYPES,
    InvalidInput,
    ListedRun,
    RunFilter,
    RunService,
    RunStatus,
    clean_text,
    excerpt,
    seconds_between,
    summary,
)
from app.web.formats import text_of
from app.web.forms import read_form
from app.web.rendering import FRAGMENT, page

_PATH: Final = "/runs"
_ROWS: Final = 50
_MAX_CHARACTERS: Final = 100
_MAX_NUMBER: Final = 1e9
_MAX_LINE: Final = 160
_METADATA: Final = "metadata"


@dataclass(frozen=True, slots=True)
class ListItem:
    """A run as a row: `summary` and `inputs` are one line each.

    The summary is the start of the result, the error, or a sentence on the state.
    """

    run: ListedRun
    summary: str
    inputs: str
    seconds: float | None

    @property
    def version(self) -> str:
        """Changes with each change of the row."""
        return f"{self.run.status}.{self.run.attempt}"

    @property
    def tokens(self) -> int | None:
        return (self.run.usage or {}).get("total_tokens")


@dataclass(frozen=True, slots=True)
class RunRows:
    """The rows of a page of a list. Its script reads `address` again for changes of them."""

    items: Sequence[ListItem]
    address: str
    first: str | None
    """The address of the first page; None on that page."""
    next: str | None
    """The address of the next page; None on the last one."""

    @property
    def tag(self) -> str:
        """The entity tag: that of equal rows is equal."""
        known = [f"{item.run.run_id} {item.version}" for item in self.items]
        digest = hashlib.sha256("\n".join([*known, self.next or ""]).encode())
        return f'"{digest.hexdigest()[:16]}"'


@dataclass(frozen=True, slots=True)
class FilterForm:
    """The filters of an address as the form shows them: texts as they were given."""

    crew: str = ""
    states: Sequence[str] = ()
    error_type: str = ""
    key: str = ""
    user: str = ""
    from_day: str = ""
    to_day: str = ""
    cost_from: str = ""
    cost_to: str = ""
    seconds_from: str = ""
    seconds_to: str = ""
    metadata: str = ""
    batch: str = ""

    @property
    def more(self) -> int:
        """How many of the filters are set that the page shows on request only."""
        return sum(
            map(
                bool,
                (
                    self.key,
                    self.user,
                    self.cost_from or self.cost_to,
                    self.seconds_from or self.seconds_to,
                    self.metadata,
                    self.batch,
                ),
            )
        )

    @property
    def is_empty(self) -> bool:
        return self == FilterForm()

    def address(self, path: str = _PATH, **changes: str | None) -> str:
        """The address of the list with these filters, and changes to it."""
        pairs = [(_PARAMETERS[name], getattr(self, name)) for name in _PARAMETERS]
        found = [(name, value) for name, value in pairs if value]
        found += [("status", state) for state in self.states]
        found += [(name, value) for name, value in changes.items() if value]
        return f"{path}?{urlencode(found)}" if found else path


_PARAMETERS: Final[Mapping[str, str]] = {
    "crew": "crew",
    "error_type": "error_type",
    "key": "key",
    "user": "user",
    "from_day": "from",
    "to_day": "to",
    "cost_from": "cost_from",
    "cost_to": "cost_to",
    "seconds_from": "seconds_from",
    "seconds_to": "seconds_to",
    "metadata": _METADATA,
    "batch": "batch",
}


@get(_PATH)
async def list_runs(request: CallerRequest, runs: Runs) -> Template:
    """A wrong filter is named, beside the form as it was given."""
    form = _form(request)
    rows, problem = None, ""
    try:
        rows = await _rows(request, runs, form)
    except InvalidInput as error:
        problem = str(error)
    names = [crew.name for crew in runs.crews()]
    return page(
        request,
        "run_list.html",
        status_code=400 if problem else 200,
        form=form,
        problem=problem,
        rows=rows,
        crews=names if not form.crew or form.crew in names else [*names, form.crew],
        statuses=list(RunStatus),
        error_types=ERROR_TYPES,
    )


@get("/runs/rows", opt=FRAGMENT)
async def show_rows(request: CallerRequest, runs: Runs) -> Response[Any]:
    """The rows of the list with the same filters, if they have changed."""
    return rows_response(request, await _rows(request, runs, _form(request)))


def rows_response(request: CallerRequest, rows: RunRows) -> Response[Any]:
    """The rows as a part of a page; 304 if those that the request names by their tag are equal."""
    headers = {"ETag": rows.tag}
    if request.headers.get("If-None-Match") == rows.tag:
        return Response(None, status_code=304, headers=headers)
    return page(request, "run_list_rows.html", headers=headers, rows=rows)


async def _rows(request: CallerRequest, runs: RunService, form: FilterForm) -> RunRows:
    cursor = request.query_params.get("cursor") or None
    found = await runs.page(_filter(form), cursor, _ROWS, request.user)
    return RunRows(
        [_item(run) for run in found.runs],
        address=form.address("/runs/rows", cursor=cursor),
        first=form.address() if cursor else None,
        next=form.address(cursor=found.next_cursor) if found.next_cursor else None,
    )


@get("/runs/{run_id:uuid}/delete")
async def confirm_delete(request: CallerRequest, run_id: FromPath[UUID], runs: Runs) -> Template:
    run = await runs.get(run_id, request.user)
    return page(request, "run_delete.html", run=run, item=_item(run))


@post("/runs/{run_id:uuid}/delete", opt=FORM, status_code=303)
async def delete_run(request: CallerRequest, run_id: FromPath[UUID], runs: Runs) -> Redirect:
    await read_form(request)
    await runs.delete(run_id, request.user)
    return Redirect(_PATH, status_code=303)


async def rows_of_batch(
    request: CallerRequest, runs: RunService, batch_id: UUID, cursor: str | None
) -> RunRows:
    """The runs of a batch as rows."""
    found = await runs.page(RunFilter(batch_id=batch_id), cursor, _ROWS, request.user)
    path = f"/batches/{batch_id}"
    return RunRows(
        [_item(run) for run in found.runs],
        address=f"{path}/rows?cursor={cursor}" if cursor else f"{path}/rows",
        first=path if cursor else None,
        next=f"{path}?cursor={found.next_cursor}" if found.next_cursor else None,
    )


def _form(request: CallerRequest) -> FilterForm:
    given = request.query_params
    values = {name: given.get(parameter, "").strip() for name, parameter in _PARAMETERS.items()}
    states = [state for state in given.getall("status", []) if state]
    return FilterForm(states=tuple(dict.fromkeys(states)), **values)


def _filter(form: FilterForm) -> RunFilter:
    """The filter that a form describes. Raises InvalidInput."""
    cost_from, cost_to = _number("cost_from", form.cost_from), _number("cost_to", form.cost_to)
    return RunFilter(
        crew=_text("crew", form.crew),
        statuses=tuple(_status(state) for state in form.states),
        error_type=_text("error_type", form.error_type),
        owner=_text("key", form.key),
        end_user=_text("user", form.user),
        created_from=_day("from", form.from_day),
        created_before=_day("to", form.to_day, following=True),
        cost_from=None if cost_from is None else nanos(cost_from),
        cost_to=None if cost_to is None else nanos(cost_to),
        seconds_from=_number("seconds_from", form.seconds_from),
        seconds_to=_number("seconds_to", form.seconds_to),
        metadata=dict(_metadata(form.metadata)),
        batch_id=_id("batch", form.batch),
    )


def _text(name: str, text: str) -> str | None:
    return clean_text(text, name, _MAX_CHARACTERS) if text else None


def _status(text: str) -> RunStatus:
    try:
        return RunStatus(text)
    except ValueError:
        raise InvalidInput("status", f"must be one of {', '.join(RunStatus)}") from None


def _number(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _MAX_NUMBER:
        raise InvalidInput(name, "must be a number from 0, such as 2.5")
    return number


def _day(name: str, text: str, *, following: bool = False) -> datetime | None:
    """The start of a day (UTC), or of the day after it."""
    if not text:
        return None
    try:
        day = datetime.strptime(text, "%Y-%m-%d").date()
        return datetime.combine(day + timedelta(days=following), time(), UTC)
    except (ValueError, OverflowError):
        raise InvalidInput(name, "must be a day such as 2030-01-31") from None


def _id(name: str, text: str) -> UUID | None:
    if not text:
        return None
    try:
        return UUID(text)
    except ValueError:
        raise InvalidInput(name, "must be an id") from None


def _metadata(text: str) -> Iterator[tuple[str, str]]:
    for pair in filter(None, map(str.strip, text.split(","))):
        name, separator, value = pair.partition("=")
        if not separator:
            raise InvalidInput(_METADATA, "must be KEY=VALUE; separate several by commas")
        yield name.strip(), value.strip()


def _item(run: ListedRun) -> ListItem:
    is_failed = bool(run.error) and run.status == RunStatus.FAILED
    inputs = "large inputs" if run.inputs is None else " · ".join(map(text_of, run.inputs.values()))
    text = run.error if is_failed else excerpt(run)
    return ListItem(
        run,
        _line(text or summary(run)),
        _line(inputs),
        seconds_between(run.started_at, run.finished_at),
    )


def _line(text: str) -> str:
    line = " ".join(text.split())
    is_long = len(line) > _MAX_LINE
    return f"{line[:_MAX_LINE].rstrip()}…" if is_long else line
