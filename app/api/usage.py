"""`/api/usage`: what runs have used of models, and its cost, by day, crew, key and model."""

import csv
import io
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import MediaType, Response, Router, get
from litestar.openapi import ResponseSpec
from litestar.params import FromQuery, QueryParameter

from app.api.dependencies import Runs
from app.api.errors import error_responses
from app.api.media_types import or_in
from app.api.middleware.auth import CallerRequest
from app.prices import usd
from app.runs import USAGE_COUNTS, InvalidInput, UsageFilter, UsageRow, clean_text

GROUPS: Final = ("day", "crew", "key", "model")
"""The groups of usage, unless a request names some of them."""

_ALL_GROUPS: Final = ",".join(GROUPS)
_DEFAULT_DAYS: Final = 30
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MAX_CHARACTERS: Final = 200
# In order of preference, for a request that accepts both.
_TYPES: Final = ["application/json", "text/csv"]

_Day = Annotated[str | None, QueryParameter(schema_extra={"format": "date"})]


class UsageView(msgspec.Struct, kw_only=True):
    """The usage of a group of runs.

    It has those of `day`, `crew`, `key` and `model` that the usage is grouped by; `key` is null for
    runs without an API key. With `model`, or for one model, `runs` counts the runs that called the
    model. `cost` is in USD, that of the calls with a price; null if none has one. The others are
    `unpriced_calls`. `cached_tokens` are a part of `input_tokens`.
    """

    day: date | msgspec.UnsetType = msgspec.UNSET
    crew: str | msgspec.UnsetType = msgspec.UNSET
    key: str | msgspec.UnsetType | None = msgspec.UNSET
    model: str | msgspec.UnsetType = msgspec.UNSET
    runs: int
    calls: int
    unpriced_calls: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float | None


class UsageAnswer(msgspec.Struct):
    """The usage of the days from `from_day` to `to_day` (UTC), both included."""

    from_day: date = msgspec.field(name="from")
    to_day: date = msgspec.field(name="to")
    group_by: list[str] = msgspec.field()
    usage: list[UsageView] = msgspec.field()


@get(
    "/",
    summary="Get the usage of models and its cost",
    operation_class=or_in("text/csv"),
    responses={200: ResponseSpec(UsageAnswer, description="The usage", generate_examples=False)}
    | error_responses({}),
)
async def get_usage(
    runs: Runs,
    request: CallerRequest,
    from_: Annotated[
        str | None, QueryParameter(name="from", schema_extra={"format": "date"})
    ] = None,
    to: _Day = None,
    crew: FromQuery[str | None] = None,
    key: FromQuery[str | None] = None,
    model: FromQuery[str | None] = None,
    group_by: FromQuery[str] = _ALL_GROUPS,
    format_: Annotated[Literal["json", "csv"] | None, QueryParameter(name="format")] = None,
) -> Response[Any]:
    """Of the runs that you may see. Days are those of the calls, in UTC; by default the last 30.

    `group_by` names some of day, crew, key and model, separated by commas. A request that prefers
    `text/csv`, or has `format=csv`, gets CSV.
    """
    to_day = _day("to", to) or datetime.now(UTC).date()
    first = max(to_day, date.min + timedelta(days=_DEFAULT_DAYS)) - timedelta(_DEFAULT_DAYS - 1)
    from_day = _day("from", from_) or first
    groups = _groups(group_by)
    matching = UsageFilter(
        from_day=from_day,
        to_day=to_day,
        crew=crew and clean_text(crew, "crew", _MAX_CHARACTERS),
        key=key and clean_text(key, "key", _MAX_CHARACTERS),
        model=model and clean_text(model, "model", _MAX_CHARACTERS),
    )
    rows = await runs.usage(matching, groups, request.user)
    as_csv = format_ == "csv" or (
        format_ is None and request.accept.best_match(_TYPES) == "text/csv"
    )
    if as_csv:
        return Response(usage_csv(groups, rows), media_type="text/csv; charset=utf-8")
    answer = UsageAnswer(from_day, to_day, groups, [_view(row) for row in rows])
    return Response(answer, media_type=MediaType.JSON)


def usage_csv(groups: Sequence[str], rows: Sequence[UsageRow]) -> str:
    """Rows as CSV, below a line of names."""
    text = io.StringIO()
    names = [*groups, *USAGE_COUNTS, "cost"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        counts = {name: getattr(row, name) for name in USAGE_COUNTS}
        cost = "" if row.cost is None else f"{usd(row.cost):.9f}"
        writer.writerow({**row.groups, **counts, "cost": cost})
    return text.getvalue()


usage_router = Router("/api/usage", route_handlers=[get_usage], tags=["usage"])


def _view(row: UsageRow) -> UsageView:
    counts = {name: getattr(row, name) for name in USAGE_COUNTS}
    groups = dict(row.groups)
    if "key" in groups:
        groups["key"] = groups["key"] or None
    return UsageView(**groups, **counts, cost=None if row.cost is None else usd(row.cost))


def _groups(text: str) -> list[str]:
    groups = [name.strip() for name in text.split(",") if name.strip()]
    if not set(groups) <= set(GROUPS) or len(set(groups)) != len(groups):
        raise InvalidInput("group_by", f"must be some of {', '.join(GROUPS)}, each once")
    return groups


def _day(name: str, text: str | None) -> date | None:
    if text is None:
        return None
    problem = "not a day such as 2030-01-31"
    if not _DAY.fullmatch(text):  # Python accepts other forms of a day, too
        raise InvalidInput(name, problem)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise InvalidInput(name, problem) from None
