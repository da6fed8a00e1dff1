"""`/`: a form for the inputs of a crew; it submits a run, whose page then shows it."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

from litestar import Request, Response, get, post
from litestar.di import NamedDependency
from litestar.params import FromQuery, QueryParameter
from litestar.response import Redirect, Template

from app.api.dependencies import Runs
from app.api.middleware.auth import CallerRequest
from app.api.middleware.csrf import FORM
from app.runs import (
    CrewInfo,
    CrewInput,
    IdempotencyConflict,
    InvalidInput,
    LimitReached,
    MissingInputs,
    Overloaded,
    ShuttingDown,
)
from app.web.formats import label, text_of
from app.web.forms import read_form
from app.web.rendering import page
from app.web.run_options import (
    metadata_text,
    option_fields,
    option_texts,
    read_options,
    run_options,
)
from app.web.snippets import curl, python

# Names of fields that are inputs begin with it, so that no input collides with another field.
_PREFIX: Final = "input."
_EXTRA: Final = "extra"
_LONG_CHARACTERS: Final = 40
_NUMBERS: Final = {"integer": "1", "number": "any"}


@dataclass(frozen=True, slots=True)
class Field:
    """An input as a field of the form."""

    name: str
    label: str
    kind: str
    """text, long, number, boolean or json."""
    step: str
    value: str
    default: str
    required: bool
    help: str
    max_chars: int
    suggestions: tuple[str, ...]
    problem: str = ""

    @property
    def is_wide(self) -> bool:
        """Whether the field needs the width of the form."""
        return self.kind in ("long", "json")


@get("/")
async def new_run(
    request: CallerRequest,
    runs: Runs,
    needs_key: NamedDependency[bool],
    crew: FromQuery[str | None] = None,
    from_: Annotated[UUID | None, QueryParameter(name="from")] = None,
) -> Template:
    """With `from`, the inputs and the metadata are those of that run."""
    values: Mapping[str, Any] = {}
    texts: Mapping[str, str] = {}
    if from_ is not None:
        run = await runs.get(from_, request.user)
        values = {k: v for k, v in run.inputs.items() if k not in run.assumed_inputs}
        texts = metadata_text(run.metadata)
        crew = run.crew
    crews = runs.crews()
    chosen = runs.crew(crew) if crew is not None else next(iter(crews), None)
    return _page(request, crews, chosen, values, texts, needs_key=needs_key, origin=from_)


@post("/", opt=FORM, status_code=303)
async def submit(
    request: CallerRequest, runs: Runs, needs_key: NamedDependency[bool]
) -> Response[Any]:
    form = await read_form(request)
    crew = runs.crew(form.get("crew", ""))
    values, problems = _values(crew, form)
    option_values = option_texts(form)
    options, problems_of_options = read_options(option_values)
    problems |= problems_of_options
    if not problems:
        try:
            key = form.get("key") or None
            run_id = await _submit(request, runs, crew.name, values, options, key)
            return Redirect(f"/runs/{run_id}", status_code=303)
        except MissingInputs as error:
            problems = dict.fromkeys(error.names, "is required")
        except InvalidInput as error:
            problems = {error.field: error.problem}
        except (LimitReached, Overloaded, ShuttingDown) as error:
            problems = {"": f"{error}. Nothing was accepted; try again later."}
    texts = {n.removeprefix(_PREFIX): text for n, text in form.items() if n.startswith(_PREFIX)}
    return _page(
        request,
        runs.crews(),
        crew,
        texts,
        option_values,
        problems,
        needs_key=needs_key,
        extra=form.get(_EXTRA, ""),
    )


async def _submit(
    request: CallerRequest,
    runs: Runs,
    crew: str,
    values: Mapping[str, Any],
    options: Mapping[str, Any],
    key: str | None,
) -> UUID:
    """Submit the run; the same form sent twice gets the same run, a changed one another."""
    try:
        return (await runs.submit(crew, values, request.user, run_options(options, key))).run_id
    except IdempotencyConflict:
        other = run_options(options, uuid4().hex)
        return (await runs.submit(crew, values, request.user, other)).run_id


def _values(crew: CrewInfo, form: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The inputs that the form has, and the problems of those that can't be read."""
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for input_ in crew.inputs:
        text = form.get(_PREFIX + input_.name, "")
        if not text.strip():
            continue
        try:
            values[input_.name] = _value(input_, text)
        except ValueError:
            problems[input_.name] = f"is not {_ARTICLES.get(input_.type or '', 'a value')}"
    if extra := form.get(_EXTRA, "").strip():
        with suppress(ValueError, RecursionError):
            more = json.loads(extra)
            if isinstance(more, dict):
                return {**more, **values}, problems
        problems[_EXTRA] = "is not a JSON object"
    return values, problems


_ARTICLES: Final = {
    "integer": "a whole number",
    "number": "a number",
    "array": "a JSON list",
    "object": "a JSON object",
    "boolean": "yes or no",
}


def _value(input_: CrewInput, text: str) -> Any:
    """The value of an input. Raises ValueError."""
    match input_.type:
        case "integer":
            return int(text)
        case "number":
            return json.loads(text)
        case "boolean":
            return {"true": True, "false": False}[text]
        case "array" | "object":
            try:
                value = json.loads(text)
            except RecursionError:
                raise ValueError from None
            if not isinstance(value, list if input_.type == "array" else dict):
                raise ValueError
            return value
    return text.replace("\r\n", "\n")


def _page(
    request: Request[Any, Any, Any],
    crews: Iterable[CrewInfo],
    chosen: CrewInfo | None,
    values: Mapping[str, Any],
    option_values: Mapping[str, str],
    problems: Mapping[str, str] | None = None,
    *,
    needs_key: bool,
    origin: UUID | None = None,
    extra: str = "",
) -> Template:
    options, problems_of_inputs = option_fields(option_values, problems or {})
    fields = [_field(one, values, problems_of_inputs) for one in chosen.inputs] if chosen else []
    names = {field.name for field in fields}
    url = str(request.base_url).rstrip("/")
    inputs = {name: value for name, value in values.items() if name in names and value != ""}
    if more := {name: value for name, value in values.items() if name not in names}:
        extra = text_of(more)
    code = {}
    if chosen is not None:
        body = {"crew": chosen.name, "inputs": inputs, **read_options(option_values)[0]}
        code = {
            "curl": curl(url, body, needs_key=needs_key),
            "Python": python(url, body, needs_key=needs_key),
        }
    return page(
        request,
        "new_run.html",
        status_code=400 if problems else 200,
        crews=crews,
        crew=chosen,
        fields=fields,
        options=options,
        extra=extra,
        code=code,
        origin=origin,
        key=uuid4().hex,
        problem=problems_of_inputs.get("", ""),
        other_problems={n: p for n, p in problems_of_inputs.items() if n and n not in names},
    )


def _field(input_: CrewInput, values: Mapping[str, Any], problems: Mapping[str, str]) -> Field:
    suggestions = tuple(text_of(example) for example in input_.examples)
    default = "" if input_.default is None else text_of(input_.default)
    longest = max((len(text) for text in (*suggestions, default)), default=_LONG_CHARACTERS + 1)
    kind = {"integer": "number", "number": "number", "boolean": "boolean"}.get(
        input_.type or "string", "json" if input_.type in ("array", "object") else "text"
    )
    if kind == "text" and (longest > _LONG_CHARACTERS and input_.max_chars > 200):
        kind = "long"
    return Field(
        name=input_.name,
        label=label(input_.name),
        kind=kind,
        step=_NUMBERS.get(input_.type or "", ""),
        value=text_of(values.get(input_.name, "")),
        default=default,
        required=input_.required,
        help=input_.help,
        max_chars=input_.max_chars,
        suggestions=suggestions,
        problem=problems.get(input_.name, ""),
    )
