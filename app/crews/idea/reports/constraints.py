"""The effect of a person's hours, money and work style."""

from __future__ import annotations

from math import inf
from typing import Final

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import catalogue
from app.crews.idea.markdown import bullets
from app.crews.idea.scoring import Assessment
from app.crews.idea.wording import budget_in_words, capital, hours_in_words, listing, usd

FULL_WEEK_HOURS: Final = 30
"""From here on it is a working week rather than a side line."""


def write(assessment: Assessment) -> str:
    """Return what the hours, the money and the work style allow and rule out."""
    reading, fits = assessment.reading, assessment.fits
    points = [_time(assessment), _money(assessment), _style(assessment)]
    if reading.hours is None and reading.budget is None:
        return bullets(points)
    within = [fit for fit in fits if fit.is_within_limits]
    near = [fit for fit in within if fit.area.name in reading.areas]
    last = f"**Together:** {_share(len(within), len(fits))} are inside these limits"
    if reading.areas:
        last += f", {len(near) or 'none'} of them in {listing(reading.areas)}"
    points.append(f"{last}.")
    return bullets(points)


def _sentences(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def _share(some: int, all_: int) -> str:
    return (
        f"all {all_} ideas of the catalogue"
        if some == all_
        else f"{some or 'none'} of {all_} ideas"
    )


def _time(assessment: Assessment) -> str:
    hours, fits = assessment.reading.hours, assessment.fits
    said = assessment.reading.said["time_commitment"]
    if hours is None:
        problem = f"“{said}” does not state a number of hours a week" if said else "not told"
        return (
            f"**Time:** {problem}, so no idea gained or lost points by it. The plans assume a "
            "comfortable pace. Check the hours of each idea yourself."
        )
    start = sum(fit.is_within_hours for fit in fits)
    comfortable = sum(hours.allows(fit.idea.hours_per_week[1]) for fit in fits)
    of_them = "all of them" if comfortable == len(fits) else comfortable or "none of them"
    return _sentences(
        f"**Time:** {hours_in_words(hours)}.",
        hours.note,
        f"{capital(_share(start, len(fits)))} can start with that, {of_them} at a comfortable "
        "pace.",
        _time_advice(hours) if start else "That is too little for each of them.",
    )


def _time_advice(hours: Amount) -> str:
    sure = hours.low if hours.high == inf and hours.low else hours.high
    if sure <= 5:
        return (
            "That is enough for one idea, one kind of customer and one way to reach them. Prefer "
            "work that you can do in single hours, at any time of day."
        )
    if sure <= 10:
        return (
            "That is enough for one idea with two fixed blocks a week: one to find customers, one "
            "to work for them. Limit the number of customers, so that the first block survives."
        )
    if sure < FULL_WEEK_HOURS:
        return (
            "That is enough for steady progress, if at least a third of it "
            "goes into finding customers from the first week."
        )
    return (
        "That is a working week. Do not spend all of it on building. Until ten customers have "
        "paid, spend half of it where customers are."
    )


def _money(assessment: Assessment) -> str:
    budget, fits = assessment.reading.budget, assessment.fits
    said = assessment.reading.said["budget_range"]
    if budget is None:
        problem = f"“{said}” does not state a sum in US dollars" if said else "not told"
        return (
            f"**Money:** {problem}, so the budget counts as neutral. Compare each idea's start-up "
            "cost yourself."
        )
    start = sum(fit.is_within_budget for fit in fits)
    return _sentences(
        f"**Money:** {budget_in_words(budget)}.",
        budget.note,
        f"{capital(_share(start, len(fits)))} can begin within that.",
        _money_advice(budget, max(fit.idea.startup_cost_usd[1] for fit in fits[:3])),
    )


def _money_advice(budget: Amount, most_needed_usd: int) -> str:
    if not budget.high:
        return (
            "Use free plans, do the first delivery by hand, and buy the first tool from the first "
            "customer's payment. What you risk is your time."
        )
    if budget.high == inf:
        return (
            "With enough money it is easy to build too much before a customer asks. Set a sum for "
            "the first test and stop when it is spent."
        )
    if budget.high <= 300:
        return (
            "Spend it on reaching customers and on materials for the first deliveries, not on a "
            "logo, a company or yearly plans."
        )
    if budget.high >= most_needed_usd:
        return (
            f"The first three ideas need at most {usd(most_needed_usd)} to start. Keep the rest "
            "until customers have paid."
        )
    return (
        f"Spend it in five steps of about {usd(budget.high / 5)}, each only after the last one has "
        "shown what it should."
    )


def _style(assessment: Assessment) -> str:
    reading, known = assessment.reading, catalogue()
    styles = [
        known.work_styles[style].name for style in (reading.company, reading.location) if style
    ]
    if not styles:
        said = reading.said["work_style"]
        problem = (
            f"“{said}” does not state with whom or where you like to work" if said else "not told"
        )
        return f"**Work style:** {problem}, so it counts as neutral."
    advice = {
        "solo": (
            "Without colleagues nobody notices a standstill, so report to one person each Friday. "
            "Avoid promises that you cannot keep when you are ill."
        ),
        "partner": "Write down now who decides what, and what happens when one of you stops.",
        "team": (
            "A team costs money or shares before it earns. Begin with people who join for the "
            "first test only."
        ),
        "remote": "Customers have to find you online, so publish something useful early.",
        "in-person": "Count travel as working hours and stay within half an hour of home.",
    }
    chosen = reading.company or reading.location or ""
    return f"**Work style:** {listing(styles)}. {advice[chosen]}"
