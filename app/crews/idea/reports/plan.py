"""A plan for the best idea: its steps in weeks, and the first ninety days."""

from __future__ import annotations

from math import ceil
from typing import Final

from app.crews.idea.catalogue import Idea
from app.crews.idea.markdown import bullets, table
from app.crews.idea.outlook import first_payment_weeks, pace, weekly_hours
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import number, usd

_WEEKS_A_MONTH: Final = 52 / 12
_NINETY_DAYS_IN_WEEKS: Final = 13
_WEEKS_AFTER_FIRST_PAYMENT: Final = (6, 16)
"""The weeks in which the last two steps end; earlier steps lead to the first payment."""


def write_path(assessment: Assessment) -> str:
    """Return all steps of the best idea, each with its weeks at the person's pace."""
    idea, hours = assessment.fits[0].idea, assessment.reading.hours
    share = pace(idea, hours)
    paid_from, paid_by = first_payment_weeks(idea, share)
    comfortable = idea.hours_per_week[1]
    speed = f"at {number(weekly_hours(idea, hours))} hrs/week"
    speed += (
        ", a comfortable pace for it"
        if share == 1
        else f", where {number(comfortable)} would be comfortable, so everything takes longer"
    )
    return (
        f"The way for “{idea.name}”, reckoned {speed}:\n\n"
        f"{table(('When', 'Step'), _weeks(idea, paid_by))}\n\n"
        f"Expect the first payment between week {paid_from} and week {paid_by}. Do not begin a "
        "step before the one above it is done."
    )


def _weeks(idea: Idea, paid_by: int) -> list[tuple[str, str]]:
    leading = len(idea.steps) - len(_WEEKS_AFTER_FIRST_PAYMENT)
    ends = [ceil(paid_by * step / leading) for step in range(1, leading + 1)]
    ends += [paid_by + weeks for weeks in _WEEKS_AFTER_FIRST_PAYMENT]
    rows, start = [], 1
    for step, planned_end in zip(idea.steps, ends, strict=True):
        end = max(planned_end, start)
        rows.append((f"Week {start}" if start == end else f"Weeks {start}–{end}", step))
        start = end + 1
    return rows


def write_ninety_days(assessment: Assessment) -> str:
    """Return three months of tasks for the best idea, each with a test at its end."""
    first, second = assessment.fits[:2]
    idea, hours = first.idea, assessment.reading.hours
    month_hours = number(round(weekly_hours(idea, hours) * _WEEKS_A_MONTH))
    find_out, offer = idea.experiments[:2]
    months = (
        _month(
            "Days 1–30: find out",
            [
                f"Ask the validation questions of five {idea.customer}",
                "Write down in their own words what each of them does about it today",
                f"{find_out.do} ({usd(find_out.cost_usd)})",
            ],
            f"the validation questions are passed, and {find_out.pass_if}",
        ),
        _month(
            "Days 31–60: ask for money",
            [
                f"{offer.do} ({usd(offer.cost_usd)})",
                "Name a price to everybody who shows interest and write down what they answer",
                "Serve by hand whoever says yes, before you build or buy more, and note your hours",
            ],
            offer.pass_if,
        ),
        _month(
            "Days 61–90: deliver and decide",
            [
                idea.steps[3],
                "Ask each customer what nearly stopped them, and mend that first",
                "Divide what you were paid, less costs, by your hours: that is your hourly rate",
                f"Only if the test below is passed, take the last step: {_lower(idea.steps[4])}",
            ],
            _payment_test(first, assessment),
        ),
    )
    return "\n\n".join(
        (
            f"Each month has about {month_hours} hours at your pace.",
            *months,
            "A test that fails may be repeated once with another kind of customer. If it fails "
            f"again, go on to “{second.idea.name}” ({second.total}/100).",
        )
    )


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _month(title: str, tasks: list[str], test: str) -> str:
    return f"### {title}\n\n{bullets(tasks)}\n\n**Test:** {test}."


def _payment_test(first: Fit, assessment: Assessment) -> str:
    share = pace(first.idea, assessment.reading.hours)
    weeks = first_payment_weeks(first.idea, share)[1]
    if weeks <= _NINETY_DAYS_IN_WEEKS:
        return "at least one customer has paid"
    return (
        "one customer has paid, or two have agreed in writing to pay by a date, since the first "
        f"payment may take {weeks} weeks at your pace"
    )
