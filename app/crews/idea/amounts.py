"""Hours and sums of money, read from what people write: "<5 hrs/week", "1k-5k", "no limit"."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import Final


@dataclass(frozen=True, slots=True)
class Amount:
    """From `low` to `high`, in hours a week or US dollars; an open end has `high` infinite.

    With `below`, `high` itself is already too much ("under 5"). `note` says, as a sentence, what
    had to be supposed to read it; it is empty when nothing was.
    """

    low: float
    high: float
    below: bool = False
    note: str = ""

    def allows(self, need: float) -> bool:
        """Whether `need` stays inside; nothing stays inside "under 0"."""
        return need < self.high or (need == self.high and not (self.below and self.high))


_WORD_NUMBERS: Final = {
    word: str(number)
    for number, word in (
        *enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight"), start=1),
        *((9, "nine"), (10, "ten"), (11, "eleven"), (12, "twelve"), (15, "fifteen")),
        *((20, "twenty"), (30, "thirty"), (40, "forty"), (50, "fifty")),
    )
}
_WORD_NUMBER = re.compile(rf"\b({'|'.join(_WORD_NUMBERS)})\b")

_SCALES: Final = {
    "hundred": 100,
    "k": 1_000,
    "thousand": 1_000,
    "grand": 1_000,
    "m": 1_000_000,
    "mio": 1_000_000,
    "million": 1_000_000,
}
_NUMBER = (
    r"(?<![0-9.,])([0-9]{1,3}(?:[,.' \u00a0\u202f][0-9]{3})+|[0-9]+)(?:[.,]([0-9]{1,2}))?(?![0-9])"
    rf"(?:\s?({'|'.join(_SCALES)})\b)?"
)
_CURRENCY = r"(?:us\$|usd|eur|euros?|gbp|pounds?|dollars?|bucks|chf|cad|aud|[$€£])"
_UNIT = r"(?:hours?|hrs?|h|minutes?|mins?|days?|evenings?|nights?)"
_SINGLE = re.compile(_NUMBER)
_RANGE = re.compile(
    rf"{_NUMBER}\s*(?:{_CURRENCY}|{_UNIT})?\s*(?:-|–|—|~|\.\.+|to|and|until|till)\s*"
    rf"{_CURRENCY}?\s*{_NUMBER}"
)
_MOST_CHARACTERS = 200  # an amount stands at the beginning or nowhere
_MOST_DIGITS = 12  # whatever has more is not a sum of money or of hours

_NOT_MORE = re.compile(r"(?:no|not|never)\s+(?:more|over|above|exceed)")
_NOT_LESS = re.compile(r"(?:no|not|never)\s+(?:less|under|below)")
_UNDER = re.compile(r"<(?!=)|\b(?:under|below|less than|fewer than)\b")
_AT_MOST = re.compile(r"<=|≤|\b(?:up ?to|max(?:imum|imal)?|at most|within|or less|tops?)\b")
_AT_LEAST = re.compile(r">|≥|\b(?:over|above|more than|at least|min(?:imum)?|from|starting)\b")
_AND_MORE = re.compile(r"\s*(?:[a-z$€£]+\s?)?(?:\+|\bplus\b|\bor more\b|\band (?:up|more)\b)")

_NO_LIMIT = re.compile(
    r"\bno (?:upper |real |fixed )?(?:limits?|cap|maximum|ceiling)\b"
    r"|\b(?:unlimited|limitless|uncapped|whatever it takes|as much as (?:needed|it takes))\b"
)
_NOTHING = re.compile(
    r"\b(?:free|zero|none|nothing|nil|sweat|penniless|broke)\b"
    r"|\bno (?:money|budget|cash|funds?|capital|savings|investment)\b"
)
_NEAR_PARITY = re.compile(r"€|£|\b(?:eur|euros?|gbp|pounds?|chf|cad|aud)\b")
_FAR_FROM_PARITY = re.compile(
    r"[₹¥₩₽₺₴₫฿₦]|\b(?:inr|rs|rupees?|jpy|yen|cny|rmb|krw|won|brl|zar|mxn)\b"
)
_BY_MONTH = re.compile(r"(?:/|\bper\b|\ba\b|\beach\b|\bevery\b)\s*(?:month|mo)\b|\bmonthly\b")

_HOURS_IN_WORDS: Final = (
    (re.compile(r"\bfull[\s-]*time\b"), 35, 40),
    (re.compile(r"\b(?:part|half)[\s-]*time\b"), 15, 20),
    (re.compile(r"\bevenings?\b.*\bweekends?\b|\bweekends?\b.*\bevenings?\b"), 8, 12),
    (re.compile(r"\bweekends?\b"), 6, 10),
    (re.compile(r"\b(?:evenings?|nights?)\b"), 5, 8),
    (re.compile(r"\ba few hours\b"), 2, 4),
    (re.compile(r"\ba couple of hours\b"), 2, 2),
)
_UNIT_AFTER = re.compile(r"[\s+-]*(minutes?|mins?|days?|evenings?|nights?)\b")
_HOURS_OF_UNIT: Final = {"min": 1 / 60, "day": 8.0, "eve": 3.0, "nig": 3.0}
_PERIOD = re.compile(
    r"(?:/|\bper\b|\ban?\b|\beach\b|\bevery\b)\s*(day|month)\b|\b(daily|monthly)\b"
)
_WORKDAYS = re.compile(r"\b(?:work|week|working )days?\b")
_MOST_HOURS_A_WEEK = 112  # sixteen hours on each of seven days


def read_hours(text: str) -> Amount | None:
    """Read `text` as hours a week; None when it does not say how many."""
    text = _plain(text)
    found = _read_number(text)
    if found is not None:
        amount, rest = found
        return _by_week(amount, rest)
    if _NO_LIMIT.search(text):
        return Amount(0, inf)
    for pattern, low, high in _HOURS_IN_WORDS:
        if pattern.search(text):
            return Amount(low, high, note="You gave no number, so this is an estimate.")
    return None


def read_budget(text: str) -> Amount | None:
    """Read `text` as US dollars to start with; None when it does not say how many."""
    text = _plain(text)
    if _FAR_FROM_PARITY.search(text):
        return None
    if _NO_LIMIT.search(text):
        return Amount(0, inf)
    found = _read_number(text)
    if found is None:
        return Amount(0, 0) if _NOTHING.search(text) else None
    amount, _ = found
    notes = []
    if _NEAR_PARITY.search(text):
        notes.append("The sum counts one to one as US dollars.")
    if _BY_MONTH.search(text):
        notes.append("You gave it by the month; here it is compared with the cost to start.")
    return Amount(amount.low, amount.high, amount.below, " ".join(notes))


def _plain(text: str) -> str:
    text = " ".join(text.casefold().split())[:_MOST_CHARACTERS]
    return _WORD_NUMBER.sub(lambda found: _WORD_NUMBERS[found[1]], text.casefold())


def _read_number(text: str) -> tuple[Amount, str] | None:
    """Return the one amount in `text` and what follows it, or None when there is not just one."""
    if pair := _RANGE.search(text):
        return _read_range(pair, text)
    singles = list(_SINGLE.finditer(text))
    if len(singles) > 1:
        # "$500 for 6 months": the number with a currency or a unit of time beside it counts.
        singles = [single for single in singles if _is_marked(single, text)]
    if len(singles) != 1:
        return None
    single = singles[0]
    value = _value(single[1], single[2], single[3])
    if value is None:
        return None
    return _bounded(value, text, single), text[single.end() :]


def _read_range(pair: re.Match[str], text: str) -> tuple[Amount, str] | None:
    low_scale, high_scale = pair[3], pair[6]
    low, high = _value(pair[1], pair[2], low_scale), _value(pair[4], pair[5], high_scale)
    if low is None or high is None:
        return None
    if low_scale is None and high_scale is not None and low < high / _SCALES[high_scale]:
        low *= _SCALES[high_scale]  # "1-5k" means 1,000 to 5,000
    rest = text[pair.end() :]
    if _AND_MORE.match(rest):
        return Amount(min(low, high), inf), rest
    return Amount(min(low, high), max(low, high)), rest


def _is_marked(single: re.Match[str], text: str) -> bool:
    before, after = text[: single.start()], text[single.end() :]
    return bool(
        re.search(rf"{_CURRENCY}\s*$", before)
        or re.match(rf"\s*(?:{_CURRENCY}|hours?\b|hrs?\b|h\b)", after)
    )


def _bounded(value: float, text: str, single: re.Match[str]) -> Amount:
    before, after = text[: single.start()], text[single.end() :]
    if _NOT_MORE.search(before):
        return Amount(0, value)
    if _NOT_LESS.search(before):
        return Amount(value, inf)
    if _AT_MOST.search(before) or _AT_MOST.search(after):
        return Amount(0, value)
    if _UNDER.search(before):
        return Amount(0, value, below=True)
    if _AT_LEAST.search(before) or _AND_MORE.match(after):
        return Amount(value, inf)
    return Amount(value, value)


def _value(whole: str, fraction: str | None, scale: str | None) -> float | None:
    digits = re.sub(r"[^0-9]", "", whole)
    if len(digits) > _MOST_DIGITS:
        return None
    return float(f"{digits}.{fraction or 0}") * (_SCALES[scale] if scale else 1)


def _by_week(amount: Amount, rest: str) -> Amount | None:
    factor = 1.0
    if unit := _UNIT_AFTER.match(rest):
        factor = _HOURS_OF_UNIT[unit[1][:3]]
        rest = rest[unit.end() :]
    if _WORKDAYS.search(rest):
        factor *= 5
    elif period := _PERIOD.search(rest):
        factor *= 12 / 52 if "month" in period[0] else 7
    low, high = round(amount.low * factor, 1), round(amount.high * factor, 1)
    if low > _MOST_HOURS_A_WEEK or _MOST_HOURS_A_WEEK < high < inf:
        return None
    return Amount(low, high, amount.below)
