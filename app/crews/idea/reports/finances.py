"""The expected income and cost of the best idea."""

from __future__ import annotations

from app.crews.idea.markdown import bullets, table
from app.crews.idea.outlook import MONTHS, Outlook, cautious, hopeful, pace, startup_cost_usd
from app.crews.idea.reading import Reading
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import budget_in_words, count, usd, usd_range

_SHOWN_MONTHS = (1, 3, 6, 12, 18)


def write(assessment: Assessment) -> str:
    """Return the balance over time in two cases, their assumptions, and the worst case."""
    best, *others = assessment.fits[:3]
    comparison = bullets(
        f"**{fit.idea.name}:** {usd_range(fit.idea.startup_cost_usd)} to start, "
        f"{usd_range(fit.idea.monthly_earnings_usd)} a month after "
        f"{count(fit.idea.ramp_months, 'month')} at {fit.idea.hours_per_week[1]} hrs/week."
        for fit in others
    )
    parts = [*_balance(best, assessment.reading), *_remarks(best, assessment.reading)]
    return "\n\n".join([*parts, f"For comparison:\n\n{comparison}"])


def _balance(best: Fit, reading: Reading) -> list[str]:
    idea = best.idea
    share = pace(idea, reading.hours)
    startup = startup_cost_usd(idea, reading.budget)
    low, high = cautious(idea, share, startup), hopeful(idea, share, startup)
    rows = [
        (f"Month {month}", usd(low.balance_usd[month - 1]), usd(high.balance_usd[month - 1]))
        for month in _SHOWN_MONTHS
    ]
    hours = "" if share == 1 else f"; {round(100 * share)}% of these earnings for your hours"
    return [
        f"The balance of “{idea.name}” since the first day, everything earned less everything "
        "spent, before tax:",
        table(("End of", "Cautious", "Hopeful"), rows),
        f"Assumptions: {usd_range(startup)} to start; {usd_range(idea.running_cost_usd)} a month "
        "from the first payment on; earnings that rise evenly to "
        f"{usd_range(idea.monthly_earnings_usd)} a month over "
        f"{count(idea.ramp_months, 'month')}{hours}. Cautious takes the worse end of every range, "
        "hopeful the better one.",
        f"In the cautious case your money is {_back(low)}, in the hopeful one {_back(high)}. "
        f"{_worst(startup[1])}",
    ]


def _remarks(best: Fit, reading: Reading) -> list[str]:
    idea, budget = best.idea, reading.budget
    remarks = []
    if reading.goal == "full-income":
        remarks.append(
            f"You want a full income: compare the {usd(idea.monthly_earnings_usd[1])} a month at "
            "the hopeful end with what you need to live, taxes and insurance included. If it falls "
            "short, prices, a second pair of hands or a second line must make up for it."
        )
    if budget is not None and not best.is_within_budget:
        remarks.append(
            f"The start alone goes beyond your budget ({budget_in_words(budget)}). Find the rest "
            "first, from a pre-order or a sale, or take the next idea."
        )
    elif startup_cost_usd(idea, budget) != idea.startup_cost_usd:
        remarks.append(
            f"With more money you could spend up to {usd(idea.startup_cost_usd[1])} on the start. "
            "Stay within your budget and buy the rest from the first payments."
        )
    return remarks


def _back(outlook: Outlook) -> str:
    month = outlook.break_even_month
    if month is None:
        return f"not back within {MONTHS} months"
    return f"back by the end of month {month}"


def _worst(startup_usd: int) -> str:
    if startup_usd == 0:
        return "If nobody ever pays, you lose your hours and no money."
    return f"If nobody ever pays, you lose up to {usd(startup_usd)} and your hours."
