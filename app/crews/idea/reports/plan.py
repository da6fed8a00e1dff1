"""The best idea in weeks: its steps, and the first ninety days."""

from __future__ import annotations

from app.crews.idea.catalogue import Experiment
from app.crews.idea.markdown import bullets, table
from app.crews.idea.reading import Reading
from app.crews.idea.schedule import Plan
from app.crews.idea.scoring import Assessment
from app.crews.idea.wording import number, span, usd

_MONTHS = ((1, 30), (31, 60), (61, 90))


def write_path(assessment: Assessment) -> str:
    """Return all steps of the best idea, each with its weeks at the person's pace."""
    plan = assessment.fits[0].plan
    rows = [(span("Week", step.weeks), step.text) for step in plan.steps]
    return (
        f"The steps of “{plan.idea.name}” {_pace(plan, assessment.reading)}:\n\n"
        f"{table(('When', 'Step'), rows)}\n\n"
        f"Expect the first payment in {_in_weeks(plan)}. Finish each step before you begin the "
        "next one."
    )


def _pace(plan: Plan, reading: Reading) -> str:
    pace = f"at {number(plan.hours_a_week)} hrs/week"
    if reading.hours is None:
        return f"{pace}, a comfortable pace for it (your hours are not known)"
    if plan.share == 1:
        return f"{pace}, a comfortable pace for it"
    comfortable = number(plan.idea.hours_per_week[1])
    return f"{pace}; {comfortable} would be comfortable, so everything needs longer"


def _in_weeks(plan: Plan) -> str:
    first, last = plan.first_payment_weeks
    if first == last:
        return f"week {first}"
    return f"week {first} at the earliest, week {last} at the latest"


def write_ninety_days(assessment: Assessment) -> str:
    """Return three months of tasks for the best idea, each with a test at its end."""
    first, second = assessment.fits[:2]
    months = (_month(first.plan, number_) for number_ in range(len(_MONTHS)))
    return "\n\n".join(
        (
            f"Each month has about {first.plan.hours_a_month} hours at your pace.",
            *months,
            "If a test fails, repeat it once with another kind of customer. If it fails again, or "
            f"if nobody has paid by the end of week {first.plan.stop_week}, change to "
            f"“{second.idea.name}” ({second.total}/100).",
        )
    )


def _month(plan: Plan, index: int) -> str:
    first_day, last_day = _MONTHS[index]
    tasks = [*_own_tasks(plan, index)]
    tasks += [
        f"{step.text} ({span('week', step.weeks)})"
        for step in plan.steps_within(first_day, last_day)
    ]
    return (
        f"### Days {first_day}–{last_day}: {_title(plan, index)}\n\n{bullets(tasks)}\n\n"
        f"**Test:** {_test(plan, index)}."
    )


def _title(plan: Plan, index: int) -> str:
    first_day, last_day = _MONTHS[index]
    if plan.is_paid_by(first_day - 1):
        return "deliver and improve"
    if not index:
        return "find out"
    return "sell" if plan.sells_by(last_day) else "prepare"


def _own_tasks(plan: Plan, index: int) -> list[str]:
    """The tasks of a month that are the same for every idea, and its experiment."""
    idea = plan.idea
    if index < len(_MONTHS) - 1:
        interviews = [f"Ask the validation questions of five {idea.customer}"] if not index else []
        return [*interviews, _experiment(plan, idea.experiments[index])]
    if plan.is_paid_by(_MONTHS[index][1]):
        return [
            "Ask each customer what nearly stopped them, and fix that first",
            "Divide what you were paid, less costs, by your hours: that is your hourly rate",
        ]
    return ["Ask everybody who said no for the reason, and change the offer"]


def _experiment(plan: Plan, experiment: Experiment) -> str:
    cost = usd(experiment.cost_usd)
    if not plan.affords(experiment):
        cost += ", more than you can spend: do it with what you have, or after a first payment"
    return f"{experiment.do} ({cost})"


def _test(plan: Plan, index: int) -> str:
    first_day, last_day = _MONTHS[index]
    if plan.is_paid_by(first_day - 1):
        return "at least one more customer has paid"
    if plan.is_paid_by(last_day):
        return "at least one customer has paid"
    tests = []
    if index == 0:
        tests.append("the validation questions are passed")
    if index < len(plan.idea.experiments):
        tests.append(plan.idea.experiments[index].pass_if)
    elif plan.sells_by(last_day):
        tests.append(
            "one customer has paid, or two have agreed in writing to pay by a date; the first "
            f"payment may need until week {plan.stop_week}"
        )
    else:
        tests.append(
            "both experiments are passed, and three people want to hear from you when you start "
            f"to sell in week {plan.first_payment_weeks[0]}"
        )
    return ", and ".join(tests)
