"""`/runs`: runs in a list; the filters are the address. Delete a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from litestar import get, post
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
    RunPage,
    RunService,
    RunStatus,
    clean_text,
    seconds_between,
)
from app.web.formats import text_of
from app.web.forms import read_form
from app.web.rendering import page

_PATH: Final = "/runs"
_ROWS: Final = 50
_MAX_CHARACTERS: Final = 100
_MAX_NUMBER: Final = 1e9
_MAX_SHOWN_INPUTS: Final = 90
_METADATA: Final = "metadata"


@dataclass(frozen=True, slots=True)
class ListItem:
    """A run as a row: `about` is its error or its inputs, in one line."""

    run: ListedRun
    about: str
    seconds: float | None

    @property
    def tokens(self) -> int | None:
        return (self.run.usage or {}).get("total_tokens")


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

    def address(self, **changes: str) -> str:
        """The address of the list with these filters, and changes to it."""
        pairs = [(_PARAMETERS[name], getattr(self, name)) for name in _PARAMETERS]
        found = [(name, value) for name, value in pairs if value]
        found += [("status", state) for state in self.states]
        found += [(name, value) for name, value in changes.items() if value]
        return f"{_PATH}?{urlencode(found)}" if found else _PATH


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
    found, problem = RunPage([], None), ""
    try:
        cursor = request.query_params.get("cursor") or None
        found = await runs.page(_filter(form), cursor, _ROWS, request.user)
    except InvalidInput as error:
        problem = str(error)
    names = [crew.name for crew in runs.crews()]
    return page(
        request,
        "run_list.html",
        status_code=400 if problem else 200,
        form=form,
        problem=problem,
        items=[_item(run) for run in found.runs],
        crews=names if not form.crew or form.crew in names else [*names, form.crew],
        statuses=list(RunStatus),
        error_types=ERROR_TYPES,
        first=form.address() if "cursor" in request.query_params else None,
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


async def items_of_batch(
    runs: RunService, batch_id: UUID, cursor: str | None, request: CallerRequest
) -> tuple[list[ListItem], str | None]:
    """The runs of a batch as rows, and the cursor of the next page."""
    found = await runs.page(RunFilter(batch_id=batch_id), cursor, _ROWS, request.user)
    return [_item(run) for run in found.runs], found.next_cursor


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
    return ListItem(run, _about(run), seconds_between(run.started_at, run.finished_at))


def _about(run: ListedRun) -> str:
    if run.error and run.status == RunStatus.FAILED:
        text = run.error
    elif run.inputs is None:
        text = "large inputs"
    else:
        text = " · ".join(map(text_of, run.inputs.values()))
    text = " ".join(text.split())
    is_long = len(text) > _MAX_SHOWN_INPUTS
    return f"{text[:_MAX_SHOWN_INPUTS].rstrip()}…" if is_long else text
