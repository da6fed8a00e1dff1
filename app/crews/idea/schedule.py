"""The plan of an idea for a person's hours and budget: every date and every sum of the reports."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Final

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import Experiment, Idea, Range

MONTHS: Final = 36
_WEEKS_A_MONTH: Final = 52 / 12
_WEEKS_OF_LATER_STEP: Final = 6
_HALF_HOUR: Final = 0.5


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the plan, and the first and the last week in which it is under way."""

    text: str
    weeks: Range


@dataclass(frozen=True, slots=True)
class Outlook:
    """The balance in US dollars at the end of each of `MONTHS` months, the first at index 0.

    Earnings and running costs begin in the month of the first payment. Earnings rise evenly to
    `earnings_usd` a month within `ramp_months`.
    """

    startup_usd: int
    running_usd: int
    earnings_usd: int
    ramp_months: int
    first_paid_month: int

    @property
    def balance_usd(self) -> tuple[int, ...]:
        """The balance at the end of each month."""
        balance, balances = float(-self.startup_usd), []
        for month in range(1, MONTHS + 1):
            if month >= self.first_paid_month:
                share = min(1.0, (month - self.first_paid_month + 1) / self.ramp_months)
                balance += self.earnings_usd * share - self.running_usd
            balances.append(round(balance))
        return tuple(balances)

    @property
    def break_even_month(self) -> int | None:
        """The month from whose end on all money is back; None if it is later."""
        short = [month for month, usd in enumerate(self.balance_usd, 1) if usd < 0]
        month = max([self.first_paid_month, *(month + 1 for month in short)])
        return month if month <= MONTHS else None

    @property
    def lowest(self) -> tuple[int, int]:
        """The month with the lowest balance, the first of several, and that balance."""
        low = min(self.balance_usd)
        return self.balance_usd.index(low) + 1, low


@dataclass(frozen=True, slots=True)
class Plan:
    """The dates and sums of one idea at one person's pace.

    `share` is the part of the comfortable pace that the hours allow: above 0, at most 1. Weeks
    count from the first day. `first_payment_weeks` are the earliest and the latest week of the
    first payment. Selling starts in the earliest of them, with the step in which a customer pays.
    """

    idea: Idea
    hours_a_week: float
    share: float
    first_payment_weeks: Range
    startup_usd: Range
    earnings_usd: Range
    steps: tuple[Step, ...]
    cautious: Outlook
    hopeful: Outlook

    @property
    def stop_week(self) -> int:
        """The week at whose end a person without a first payment should stop."""
        return self.first_payment_weeks[1]

    @property
    def hours_a_month(self) -> int:
        """The hours of one month."""
        return round(self.hours_a_week * _WEEKS_A_MONTH)

    @property
    def at_stake_usd(self) -> int:
        """The most that can be lost: the start without any payment, or the cautious case."""
        return max(self.startup_usd[1], -self.cautious.lowest[1])

    @property
    def loses_money(self) -> bool:
        """Whether the money is not back within `MONTHS` months in the cautious case."""
        return self.cautious.break_even_month is None

    def steps_within(self, first_day: int, last_day: int) -> list[Step]:
        """The steps that are under way on some of these days."""
        return [
            step
            for step in self.steps
            if 7 * (step.weeks[0] - 1) < last_day and 7 * step.weeks[1] >= first_day
        ]

    def is_paid_by(self, day: int) -> bool:
        """Whether the first payment is due by that day at the latest."""
        return 7 * self.stop_week <= day

    def sells_by(self, day: int) -> bool:
        """Whether selling has started by that day."""
        return 7 * (self.first_payment_weeks[0] - 1) < day

    def affords(self, experiment: Experiment) -> bool:
        """Whether the money for the start covers the experiment."""
        return experiment.cost_usd <= self.startup_usd[1]


def plan_for(idea: Idea, hours: Amount | None, budget: Amount | None) -> Plan:
    """Plan `idea` within a person's hours and budget; None stands for an unknown one.

    Unknown hours mean the comfortable pace. Spending stays within the budget if the idea
    can start with that.
    """
    hours_a_week = _hours_a_week(idea, hours)
    share = hours_a_week / idea.hours_per_week[1]
    earliest, latest = _first_payment_weeks(idea, share)
    startup = _startup_usd(idea, budget)
    low, high = (_rounded(usd * share) for usd in idea.monthly_earnings_usd)
    running_low, running_high = idea.running_cost_usd
    ramp = idea.ramp_months
    return Plan(
        idea=idea,
        hours_a_week=hours_a_week,
        share=share,
        first_payment_weeks=(earliest, latest),
        startup_usd=startup,
        earnings_usd=(low, high),
        steps=_steps(idea, earliest, latest),
        cautious=Outlook(startup[1], running_high, low, ramp, _month_of(latest)),
        hopeful=Outlook(startup[0], running_low, high, ramp, _month_of(earliest)),
    )


def _hours_a_week(idea: Idea, hours: Amount | None) -> float:
    comfortable = idea.hours_per_week[1]
    if hours is None:
        return comfortable
    most = hours.high - _HALF_HOUR if hours.below else hours.high
    return max(1.0, min(most, comfortable))


def _first_payment_weeks(idea: Idea, share: float) -> Range:
    """Return the earliest and the latest week, after no more than two preparing steps a week."""
    low, high = (ceil(weeks / share) for weeks in idea.first_revenue_weeks)
    earliest = max(low, 1 + ceil((idea.paid_step - 1) / 2))
    return earliest, max(earliest, high)


def _startup_usd(idea: Idea, budget: Amount | None) -> Range:
    low, high = idea.startup_cost_usd
    if budget is None or budget.allows(high):
        return low, high
    return low, max(low, int(budget.high) - budget.below)


def _rounded(usd: float) -> int:
    """Round to tens, which is as exact as planning ranges are."""
    return round(usd / 10) * 10


def _month_of(week: int) -> int:
    return max(1, ceil(week / _WEEKS_A_MONTH))


def _steps(idea: Idea, earliest: int, latest: int) -> tuple[Step, ...]:
    """Spread the steps: preparation, the step in which the first customer pays, later steps."""
    preparing, before = idea.paid_step - 1, earliest - 1
    steps = []
    for number, text in enumerate(idea.steps, start=1):
        if number < idea.paid_step:
            first = 1 + (number - 1) * before // preparing
            weeks = (first, max(first, number * before // preparing))
        elif number == idea.paid_step:
            weeks = (earliest, latest)
        else:
            first = latest + 1 + (number - idea.paid_step - 1) * _WEEKS_OF_LATER_STEP
            weeks = (first, first + _WEEKS_OF_LATER_STEP - 1)
        steps.append(Step(text, weeks))
    return tuple(steps)
