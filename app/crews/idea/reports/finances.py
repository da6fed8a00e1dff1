"""The expected income and cost of the best idea."""

from __future__ import annotations

from app.crews.idea.markdown import bullets, table
from app.crews.idea.reading import Reading
from app.crews.idea.schedule import MONTHS, Outlook, Plan
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import budget_in_words, count, number, usd, usd_range

_SHOWN_MONTHS = (1, 3, 6, 12, 18, 24, 36)


def write(assessment: Assessment) -> str:
    """Return the balance over time in two cases, their assumptions, and the worst case."""
    best, *others = assessment.fits[:3]
    comparison = bullets(f"**{fit.idea.name}:** {_in_short(fit.plan)}." for fit in others)
    parts = [*_balance(best.plan), *_remarks(best, assessment.reading)]
    return "\n\n".join([*parts, f"For comparison:\n\n{comparison}"])


def _in_short(plan: Plan) -> str:
    return (
        f"{usd_range(plan.startup_usd)} to start, then {usd_range(plan.earnings_usd)} a month "
        f"{count(plan.idea.ramp_months, 'month')} after the first payment, at "
        f"{number(plan.hours_a_week)} hrs/week"
    )


def _balance(plan: Plan) -> list[str]:
    idea, low, high = plan.idea, plan.cautious, plan.hopeful
    rows = [
        (f"Month {month}", usd(low.balance_usd[month - 1]), usd(high.balance_usd[month - 1]))
        for month in _SHOWN_MONTHS
    ]
    return [
        f"The balance of “{idea.name}” since the first day: all earnings less all costs, before "
        "tax.",
        table(("End of", "Cautious", "Hopeful"), rows),
        bullets(
            (
                f"**To start:** {usd_range(plan.startup_usd)}.",
                f"**Running costs:** {usd_range(idea.running_cost_usd)} a month from the month of "
                "the first payment on.",
                f"**First payment:** {_first_payment(low, high)}.",
                f"**Earnings:** they rise evenly over {count(idea.ramp_months, 'month')} to "
                f"{usd_range(plan.earnings_usd)} a month at {number(plan.hours_a_week)} hrs/week.",
            )
        ),
        "The cautious case uses the worse end of every range, the hopeful case the better one. In "
        f"the cautious case your money is {_back(low)}, in the hopeful case {_back(high)}.",
        *_early_costs(plan),
        _worst(plan),
    ]


def _first_payment(low: Outlook, high: Outlook) -> str:
    if low.first_paid_month == high.first_paid_month:
        return f"in month {low.first_paid_month} in both cases"
    return f"in month {high.first_paid_month} (hopeful) or month {low.first_paid_month} (cautious)"


def _early_costs(plan: Plan) -> list[str]:
    pairs = zip(plan.cautious.balance_usd, plan.hopeful.balance_usd, strict=True)
    if all(low <= high for low, high in pairs):
        return []
    return [
        "In the hopeful case the running costs begin earlier, so its balance can be lower first."
    ]


def _remarks(best: Fit, reading: Reading) -> list[str]:
    plan, budget = best.plan, reading.budget
    remarks = []
    if reading.goal == "full-income":
        remarks.append(
            f"You want a full income. Compare the {usd(plan.earnings_usd[1])} a month at the "
            "hopeful end with what you need to live, taxes and insurance included. If it is not "
            "enough, you need higher prices, more hours or a second offer."
        )
    if budget is not None and not best.is_within_budget:
        remarks.append(
            f"The start alone costs more than your budget ({budget_in_words(budget)}). Find the "
            "rest first, for example from an advance order, or choose the next idea."
        )
    elif plan.startup_usd != plan.idea.startup_cost_usd:
        remarks.append(
            f"With more money you could spend up to {usd(plan.idea.startup_cost_usd[1])} on the "
            "start. Stay within your budget and buy the rest from the first payments."
        )
    return remarks


def _back(outlook: Outlook) -> str:
    month = outlook.break_even_month
    if month is None:
        return f"not back within {MONTHS} months"
    return f"back by the end of month {month}"


def _worst(plan: Plan) -> str:
    startup = plan.startup_usd[1]
    loss = (
        f"If nobody ever pays, you lose up to {usd(startup)} and your hours."
        if startup
        else "If nobody ever pays, you lose your hours and no money."
    )
    month, low = plan.cautious.lowest
    if -low <= startup:
        return loss
    return (
        f"{loss} Customers who pay little can cost you more than that: in the cautious case the "
        f"balance is lowest at the end of month {month}, at {usd(low)}. Stop earlier if you cannot "
        "lose that much."
    )
