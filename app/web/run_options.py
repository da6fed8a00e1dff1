"""The options of a new run as fields of its form: webhook, metadata and budget."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from app.api.budget_fields import MaxCost, MaxCount
from app.api.problems import allowed
from app.budgets import budget
from app.runs import METADATA_LIMITS, RunOptions, webhooks_at

_WEBHOOK: Final = "webhook_url"
_METADATA: Final = "metadata"
_BUDGET: Final[Mapping[str, Any]] = {
    "max_cost": MaxCost,
    "max_model_calls": MaxCount,
    "max_tokens": MaxCount,
}


@dataclass(frozen=True, slots=True)
class OptionField:
    """An option as a field of the form; `name` is that of the API."""

    name: str
    label: str
    kind: str
    """url, metadata or number."""
    help: str
    value: str = ""
    problem: str = ""


_FIELDS: Final = (
    OptionField(_WEBHOOK, "Webhook URL", "url", "It receives finished tasks and the end."),
    OptionField(_METADATA, "Metadata", "metadata", f"KEY=VALUE, one a line. {METADATA_LIMITS}"),
    OptionField("max_cost", "Cost at most, $", "number", "A run that needs more fails."),
    OptionField("max_model_calls", "Model calls at most", "number", ""),
    OptionField("max_tokens", "Tokens at most", "number", "Input and output together."),
)


def option_texts(form: Mapping[str, str]) -> dict[str, str]:
    """The texts of options in a form, by name; an empty field is no option."""
    texts = {field.name: form.get(field.name, "").strip() for field in _FIELDS}
    return {name: text for name, text in texts.items() if text}


def metadata_text(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The text of the field for this metadata, by name."""
    lines = (f"{key}={value}" for key, value in (metadata or {}).items() if "\n" not in value)
    return {_METADATA: "\n".join(lines)}


def read_options(texts: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The options as fields of the API's request, and the problems of those that can't be read."""
    options: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, text in texts.items():
        try:
            options[name] = _value(name, text)
        except (ValueError, msgspec.ValidationError):
            kind = _BUDGET.get(name)
            problems[name] = f"must be {allowed(kind) if kind else 'KEY=VALUE, one a line'}"
    return options, problems


def run_options(options: Mapping[str, Any], idempotency_key: str | None) -> RunOptions:
    """The options of a run whose text streams."""
    return RunOptions(
        stream=True,
        idempotency_key=idempotency_key,
        webhooks=webhooks_at(options.get(_WEBHOOK)),
        metadata=options.get(_METADATA, {}),
        budget=budget(**{name: options.get(name) for name in _BUDGET}),
    )


def option_fields(
    texts: Mapping[str, str], problems: Mapping[str, str]
) -> tuple[list[OptionField], dict[str, str]]:
    """The fields with their texts and problems, and the problems of other fields."""
    own: dict[str, str] = {}
    others: dict[str, str] = {}
    names = {field.name for field in _FIELDS}
    for name, problem in problems.items():
        field, _, key = name.partition(".")  # metadata.KEY is a problem of metadata
        if field in names:
            own[field] = f"{key}: {problem}" if key else problem
        else:
            others[name] = problem
    fields = [
        replace(field, value=texts.get(field.name, ""), problem=own.get(field.name, ""))
        for field in _FIELDS
    ]
    return fields, others


def _value(name: str, text: str) -> Any:
    """The value of an option. Raises ValueError, msgspec.ValidationError."""
    if name in _BUDGET:
        number = float(text) if name == "max_cost" else int(text)
        return msgspec.convert(number, _BUDGET[name])
    if name == _METADATA:
        pairs = [line.partition("=") for line in text.splitlines() if line.strip()]
        if not all(separator for _, separator, _ in pairs):
            raise ValueError
        return {key.strip(): value.strip() for key, _, value in pairs}
    return text
