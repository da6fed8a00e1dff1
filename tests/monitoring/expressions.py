"""The metrics and labels in an expression of Prometheus' query language."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from app.telemetry.instruments import Histogram
from app.telemetry.metrics import TABLE

_TARGET_LABELS = {"job", "instance"}
# Prometheus' own.
_OTHERS = {"up": _TARGET_LABELS}
_WORDS = {"and", "or", "unless", "offset", "bool"}
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")


class Used(NamedTuple):
    """A metric with the labels that select its values."""

    name: str
    labels: frozenset[str]


def problems(expression: str) -> Iterator[str]:
    """The metrics and labels of an expression that do not exist."""
    selected = list(_selected(expression))
    if not selected:
        yield f"no metric in {expression}"
    known = set[str]()
    for used in selected:
        labels = _labels(used.name)
        if labels is None:
            yield f"no metric {used.name}"
            continue
        known |= labels
        yield from (f"{used.name} has no label {label}" for label in used.labels - labels)
    for labels in _GROUPING.findall(expression):
        for label in filter(None, map(str.strip, labels.split(","))):
            if label not in known:
                yield f"no metric of {expression} has the label {label}"


def metrics_in(expression: str) -> set[str]:
    """The names of the table that an expression uses."""
    return {_instrument(used.name) for used in _selected(expression)}


def _selected(expression: str) -> Iterator[Used]:
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    text = _GROUPING.sub(" ", text)
    text = re.sub(r"\[[^\]]*\]", " ", text)
    text = re.sub(r"\b\d[\w.]*", " ", text)  # numbers and durations
    for match in _SELECTOR.finditer(text):
        name, labels = match[1], match[2] or ""
        if name not in _WORDS and not text[match.end() :].lstrip().startswith("("):
            yield Used(name, frozenset(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", labels)))


def _labels(name: str) -> set[str] | None:
    """The labels of a metric; None if it does not exist."""
    if name in _OTHERS:
        return _OTHERS[name]
    instrument = TABLE.get(_instrument(name))
    if instrument is None or (isinstance(instrument, Histogram) == (name == instrument.name)):
        return None
    le = {"le"} if name.endswith("_bucket") else set[str]()
    return {*instrument.labels, *_TARGET_LABELS, *le}


def _instrument(name: str) -> str:
    base = re.sub(r"_(bucket|count|sum)$", "", name)
    return base if isinstance(TABLE.get(base), Histogram) else name
