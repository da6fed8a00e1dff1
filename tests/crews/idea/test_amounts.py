"""Hours and budgets in the words that people use."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.crews.idea.amounts import Amount, read_budget, read_hours


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("<5 hrs/week", 0, 5),
        ("5-10 hrs/week", 5, 10),
        ("5–10 hours", 5, 10),
        ("5 to 10 h", 5, 10),
        ("5 hrs - 10 hrs", 5, 10),
        ("10 - 5 hours", 5, 10),
        ("20+ hrs/week", 20, inf),
        ("20 hours or more", 20, inf),
        ("at least 15 hours", 15, inf),
        ("not less than 15 hours", 15, inf),
        ("up to 12h", 0, 12),
        ("No more than 6 hours", 0, 6),
        ("Full-time", 35, 40),
        ("part time", 15, 20),
        ("weekends", 6, 10),
        ("evenings and weekends", 8, 12),
        ("ten hours a week", 10, 10),
        ("a few hours", 2, 4),
        ("2 hours a day", 14, 14),
        ("1 hour every weekday", 5, 5),
        ("2h/day on weekdays", 10, 10),
        ("30 minutes a day", 3.5, 3.5),
        ("1,5 hours a day", 10.5, 10.5),
        ("26 hours per month", 6, 6),
        ("2 days a week", 16, 16),
        ("2 evenings a week", 6, 6),
        ("10 hrs/week for the next 3 months", 10, 10),
        ("as much as it takes, no limit", 0, inf),
    ],
)
def test_hours_are_read_by_the_week(text: str, low: float, high: float) -> None:
    hours = read_hours(text)
    assert hours is not None
    assert (hours.low, hours.high) == (low, high)


@pytest.mark.parametrize(
    "text", ["", "soon", "24/7", "500 hrs/week", "it depends", "0-200 hours", "9" * 4000, "🕑"]
)
def test_a_text_without_hours_is_not_guessed(text: str) -> None:
    assert read_hours(text) is None


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("Free / Sweat-equity only", 0, 0),
        ("none", 0, 0),
        ("no money at all", 0, 0),
        ("$0", 0, 0),
        ("$0 - $100", 0, 100),
        ("$100 - $500", 100, 500),
        ("between $100 and $200", 100, 200),
        ("Under $1,000", 0, 1000),
        ("less than 1,000 dollars", 0, 1000),
        ("500 or less", 0, 500),
        ("up to $250", 0, 250),
        ("about 300", 300, 300),
        ("1k-5k", 1000, 5000),
        ("1-5k", 1000, 5000),
        ("$500-1k", 500, 1000),
        ("$1.5k", 1500, 1500),
        ("two hundred bucks", 200, 200),
        ("$5,000+", 5000, inf),
        ("Over $10,000", 10000, inf),
        ("> $5k", 5000, inf),
        ("€2,000", 2000, 2000),
        ("2.500 €", 2500, 2500),
        ("10 000 USD", 10000, 10000),
        ("$1,200.50", 1200.5, 1200.5),
        ("$500 for 6 months", 500, 500),
        ("$100/month", 100, 100),
        ("No limit", 0, inf),
        ("unlimited", 0, inf),
    ],
)
def test_budgets_are_read_in_dollars(text: str, low: float, high: float) -> None:
    budget = read_budget(text)
    assert budget is not None
    assert (budget.low, budget.high) == (low, high)


@pytest.mark.parametrize(
    "text", ["", "some", "not much", "₹50,000", "50,000 yen", "9" * 4000, "3 or 4 or 5 hundred"]
)
def test_a_text_without_a_sum_in_dollars_is_not_guessed(text: str) -> None:
    assert read_budget(text) is None


@pytest.mark.parametrize(
    ("text", "fits", "too_much"),
    [("<5 hrs/week", 4.9, 5), ("up to 5 hours", 5, 5.1), ("5-10 hours", 10, 10.5)],
)
def test_under_excludes_its_number_and_up_to_includes_it(
    text: str, fits: float, too_much: float
) -> None:
    hours = read_hours(text)
    assert hours is not None
    assert hours.allows(fits)
    assert not hours.allows(too_much)


def test_what_had_to_be_supposed_is_said() -> None:
    assert read_hours("Full-time") == Amount(
        35, 40, note="You gave no number, so this is an estimate."
    )
    assert "one to one" in read_budget("€2,000").note
    assert "month" in read_budget("$100 a month").note
    assert read_budget("$100").note == ""


@given(st.text(max_size=4000))
def test_any_text_is_either_read_or_not(text: str) -> None:
    for amount in (read_hours(text), read_budget(text)):
        if amount is not None:
            assert 0 <= amount.low <= amount.high


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["1 " * 2000, "1" + " " * 3999, "1,000 " * 600, "evening " * 500])
def test_long_texts_cost_little(text: str) -> None:
    for _ in range(50):
        read_hours(text)
        read_budget(text)


@pytest.mark.parametrize("text", ["under $0", "< 0 USD", "Under 00", "Free"])
def test_a_budget_of_nothing_allows_what_is_free(text: str) -> None:
    budget = read_budget(text)
    assert budget is not None
    assert budget.allows(0)
    assert not budget.allows(1)
