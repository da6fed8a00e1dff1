"""Dates and sums from the catalogue's planning ranges."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import msgspec
import pytest

from app.crews.idea.advisor import answer
from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import Idea, catalogue
from app.crews.idea.schedule import MONTHS, plan_for
from tests.crews.idea.profiles import WROTE_DEFAULTS
from tests.crews.idea.prompts import render

_IDEAS = [idea for _, idea in catalogue().ideas()]

_PLAIN = msgspec.structs.replace(
    _IDEAS[0],
    startup_cost_usd=(0, 100),
    running_cost_usd=(10, 20),
    hours_per_week=(4, 8),
    first_revenue_weeks=(4, 8),
    monthly_earnings_usd=(120, 400),
    ramp_months=2,
)


def test_the_cautious_case_uses_the_worse_end_of_every_range() -> None:
    # Paid from month 2 on: 60 - 20, then 120 - 20 a month.
    outlook = plan_for(_PLAIN, None, None).cautious
    assert outlook.balance_usd[:4] == (-100, -60, 40, 140)
    assert outlook.break_even_month == 3


def test_the_hopeful_case_uses_the_better_end() -> None:
    outlook = plan_for(_PLAIN, None, None).hopeful
    assert outlook.balance_usd[:3] == (190, 580, 970)
    assert outlook.break_even_month == 1


def test_nothing_is_back_before_the_first_payment() -> None:
    late = msgspec.structs.replace(_PLAIN, first_revenue_weeks=(12, 12))
    assert plan_for(late, None, None).hopeful.break_even_month == 3


def test_what_never_pays_back_has_no_break_even() -> None:
    poor = msgspec.structs.replace(_PLAIN, monthly_earnings_usd=(0, 400))
    assert plan_for(poor, None, None).cautious.break_even_month is None


def test_fewer_hours_earn_less_and_later() -> None:
    plan = plan_for(_PLAIN, Amount(0, 4), None)
    assert plan.share == 0.5
    assert plan.first_payment_weeks == (8, 16)
    assert plan.earnings_usd == (60, 200)
    full = plan_for(_PLAIN, None, None)
    assert plan.cautious.balance_usd[-1] < full.cautious.balance_usd[-1]


@pytest.mark.parametrize(
    ("hours", "share"), [(None, 1), (Amount(20, inf), 1), (Amount(0, 0), 1 / 8)]
)
def test_any_hours_have_a_pace(hours: Amount | None, share: float) -> None:
    assert plan_for(_PLAIN, hours, None).share == share


@pytest.mark.parametrize(
    ("budget", "cost_usd"),
    [
        (None, (0, 100)),
        (Amount(0, 0), (0, 0)),
        (Amount(0, 60), (0, 60)),
        (Amount(0, 60, below=True), (0, 59)),
        (Amount(100, 500), (0, 100)),
        (Amount(0, inf), (0, 100)),
    ],
)
def test_spending_stays_within_the_budget(budget: Amount | None, cost_usd: tuple[int, int]) -> None:
    assert plan_for(_PLAIN, None, budget).startup_usd == cost_usd


def test_what_must_be_spent_is_not_talked_away() -> None:
    dear = msgspec.structs.replace(_PLAIN, startup_cost_usd=(50, 100))
    assert plan_for(dear, None, Amount(0, 0)).startup_usd == (50, 50)


@pytest.mark.parametrize("idea", _IDEAS, ids=lambda idea: idea.name)
def test_hope_is_never_below_caution(idea: Idea) -> None:
    for hours in (idea.hours_per_week[1] / 4, idea.hours_per_week[1]):
        plan = plan_for(idea, Amount(hours, hours), None)
        low, high = plan.cautious, plan.hopeful
        assert len(low.balance_usd) == len(high.balance_usd) == MONTHS
        assert all(a <= b for a, b in zip(low.balance_usd, high.balance_usd, strict=True))


def test_a_person_without_money_reads_that_only_hours_are_at_stake() -> None:
    report = answer(render("personalized_recommendations", WROTE_DEFAULTS)) or ""
    assert "If nobody ever pays, you lose your hours and no money." in report
    rich = replace(WROTE_DEFAULTS, budget_range="$500")
    report = answer(render("personalized_recommendations", rich)) or ""
    assert "If nobody ever pays, you lose up to $60 and your hours." in report
