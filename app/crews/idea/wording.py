"""Numbers and lists in words."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import Range


def usd(amount: float) -> str:
    """$1,500; a loss has its sign in front: -$40."""
    return f"{'-' if amount < 0 else ''}${abs(amount):,.0f}"


def usd_range(amounts: Range) -> str:
    """$200–1,200; a range without width is one sum."""
    low, high = amounts
    return usd(low) if low == high else f"{usd(low)}–{high:,}"


def number(value: float) -> str:
    """4, 4.5 or 1,200: no more decimals than needed, at most one."""
    return f"{value:,.1f}".removesuffix(".0")


def number_range(values: Range) -> str:
    """3–6; a range without width is one number."""
    low, high = values
    return number(low) if low == high else f"{number(low)}–{number(high)}"


def span(unit: str, values: Range) -> str:
    """Week 3; Weeks 3–6."""
    first, last = values
    return f"{unit} {first}" if first == last else f"{unit}s {first}–{last}"


def count(amount: float, noun: str, plural: str = "") -> str:
    """1 idea, 2 ideas."""
    return f"{number(amount)} {noun if amount == 1 else plural or noun + 's'}"


def listing(items: Sequence[str], last: str = "and") -> str:
    """a, b and c."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {last} {items[-1]}"


def capital(text: str) -> str:
    """`text` with its first letter a capital."""
    return text[:1].upper() + text[1:]


def hours_in_words(hours: Amount) -> str:
    """less than 5 hours a week; 5 to 10 hours a week; 20 hours a week or more."""
    if hours.high == inf:
        return "any number of hours" if not hours.low else f"{_hours(hours.low)} a week or more"
    if hours.below:
        return f"less than {_hours(hours.high)} a week"
    if not hours.low:
        return f"up to {_hours(hours.high)} a week"
    if hours.low == hours.high:
        return f"{_hours(hours.high)} a week"
    return f"{number(hours.low)} to {_hours(hours.high)} a week"


def budget_in_words(budget: Amount) -> str:
    """nothing up front; less than $1,000; $100 to $500; $5,000 or more."""
    if budget.high == inf:
        return "any sum" if not budget.low else f"{usd(budget.low)} or more"
    if not budget.high:
        return "nothing up front"
    if budget.below:
        return f"less than {usd(budget.high)}"
    if not budget.low:
        return f"up to {usd(budget.high)}"
    if budget.low == budget.high:
        return usd(budget.high)
    return f"{usd(budget.low)} to {usd(budget.high)}"


def _hours(hours: float) -> str:
    return count(hours, "hour")
