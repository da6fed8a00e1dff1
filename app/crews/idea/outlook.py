"""The income and cost of an idea, month by month, from its planning ranges."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import Idea, Range

MONTHS: Final = 36
_WEEKS_A_MONTH: Final = 52 / 12


@dataclass(frozen=True, slots=True)
class Outlook:
    """The balance in US dollars at the end of each of `MONTHS` months, the first at index 0."""

    first_paid_month: int
    balance_usd: tuple[int, ...]

    @property
    def break_even_month(self) -> int | None:
        """The month from whose end on all money is back; None if it is later."""
        short = [month for month, usd in enumerate(self.balance_usd, 1) if usd < 0]
        month = max([self.first_paid_month, *(month + 1 for month in short)])
        return month if month <= MONTHS else None


def weekly_hours(idea: Idea, hours: Amount | None) -> float:
    """Return the hours a week that go into `idea`: no more than is comfortable, at least 1."""
    comfortable = idea.hours_per_week[1]
    return comfortable if hours is None else max(1.0, min(hours.high, comfortable))


def pace(idea: Idea, hours: Amount | None) -> float:
    """Return the share of the comfortable pace that `hours` allow: above 0, at most 1."""
    return weekly_hours(idea, hours) / idea.hours_per_week[1]


def first_payment_weeks(idea: Idea, share: float) -> Range:
    """Return the weeks until the first payment, from and to, at `share` of the pace."""
    low, high = idea.first_revenue_weeks
    return ceil(low / share), ceil(high / share)


def startup_cost_usd(idea: Idea, budget: Amount | None) -> Range:
    """Return what `idea` costs to start when spending stays within `budget` where it can."""
    low, high = idea.startup_cost_usd
    if budget is None or budget.allows(high):
        return low, high
    return low, max(low, int(budget.high))


def cautious(idea: Idea, share: float, startup_usd: Range) -> Outlook:
    """Everything at its worse end: late first payment, low earnings, high costs."""
    return _outlook(
        idea,
        weeks=first_payment_weeks(idea, share)[1],
        earnings_usd=idea.monthly_earnings_usd[0] * share,
        startup_usd=startup_usd[1],
        running_usd=idea.running_cost_usd[1],
    )


def hopeful(idea: Idea, share: float, startup_usd: Range) -> Outlook:
    """Everything at its better end."""
    return _outlook(
        idea,
        weeks=first_payment_weeks(idea, share)[0],
        earnings_usd=idea.monthly_earnings_usd[1] * share,
        startup_usd=startup_usd[0],
        running_usd=idea.running_cost_usd[0],
    )


def _outlook(
    idea: Idea, *, weeks: int, earnings_usd: float, startup_usd: int, running_usd: int
) -> Outlook:
    first_month = max(1, ceil(weeks / _WEEKS_A_MONTH))
    balance, balances = -float(startup_usd), []
    for month in range(1, MONTHS + 1):
        if month >= first_month:
            # Earnings rise evenly from the first payment to the end of the ramp.
            share = min(1.0, (month - first_month + 1) / idea.ramp_months)
            balance += earnings_usd * share - running_usd
        balances.append(round(balance))
    return Outlook(first_month, tuple(balances))
