"""Numbers, times and states as pages show them: the filters of the templates.

`static/formats.js` writes numbers and times alike.
"""

import json
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final

from markupsafe import Markup

NOTHING: Final = "–"
"""Stands for a value that does not exist."""

STATE_NAMES: Final = {
    "awaiting_human": "waiting for you",
    "succeeded": "succeeded",
}
"""The words for states that differ from their names in the API."""

_STEPS: Final = (
    (60, 1, "s"),
    (3600, 60, "min"),
    (86_400, 3600, "h"),
    (30 * 86_400, 86_400, "d"),
)


def moment(time: datetime | None, *, now: datetime | None = None) -> str | Markup:
    """A `<time>`: relative for the eye, exact on hover; a script keeps it current."""
    if time is None:
        return NOTHING
    exact = time.astimezone(UTC)
    iso = exact.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Markup('<time datetime="{}" title="{}" data-relative>{}</time>').format(
        iso, f"{exact:%Y-%m-%d %H:%M:%S} UTC", relative(exact, now or datetime.now(UTC))
    )


def relative(time: datetime, now: datetime) -> str:
    """A time as its distance from now, such as `5 min ago`; after a month, the date."""
    seconds = (now - time).total_seconds()
    distance = abs(seconds)
    if distance < 5:
        return "now"
    for below, unit, name in _STEPS:
        if distance < below:
            amount = f"{distance // unit:.0f} {name}"
            return f"{amount} ago" if seconds > 0 else f"in {amount}"
    return f"{time:%Y-%m-%d}"


def duration(seconds: float | None) -> str:
    """A duration in at most two units: `0.42 s`, `12.3 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    if seconds is None:
        return NOTHING
    seconds = max(seconds, 0.0)
    if seconds < 0.995:
        return f"{_fixed(seconds, 2)} s"
    if seconds < 59.95:
        return f"{_fixed(seconds, 1)} s"
    minutes, rest = divmod(int(_fixed(seconds, 0)), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def money(usd: float | None) -> str:
    """An amount in US dollars; small ones with three significant digits."""
    if usd is None:
        return NOTHING
    digits = 2
    while 0 < usd < 0.995 and digits < 9 and usd < 10.0 ** (2 - digits):
        digits += 1
    return f"${_fixed(usd, digits):,f}"


def count(number: float | None) -> str:
    """A number with separators: `12,345`."""
    return NOTHING if number is None else f"{number:,}"


def size(number: float | None) -> str:
    """A number of bytes: `512 B`, `4.2 kB`, `1.3 GB`."""
    if number is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            return f"{_fixed(number, 0 if unit == 'B' else 1)} {unit}"
        number /= 1000
    raise AssertionError


def _fixed(number: float, digits: int) -> Decimal:
    """The number with so many digits, rounded as JavaScript rounds: halves go up."""
    return Decimal(number).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def state(status: str) -> Markup:
    """The badge of a state of a run, task, delivery or batch."""
    name = STATE_NAMES.get(status, status.replace("_", " "))
    return Markup('<span class="state {}">{}</span>').format(f"is-{status}", name)


def text_of(value: Any, indent: int | None = None) -> str:
    """A JSON value as text: a string as it is, others as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, indent=indent)


def label(name: str) -> str:
    """A name of code as a label: `goal_type` is `Goal type`."""
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]
