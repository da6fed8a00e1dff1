"""The best idea in weeks: its steps, and the first ninety days."""

from __future__ import annotations

from app.crews.idea.catalogue import Experiment
from app.crews.idea.markdown import bullets, table
from app.crews.idea.reading import Reading
from app.crews.idea.schedule import Plan, Step
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
    least, comfortable = plan.idea.hours_per_week
    if reading.hours is None:
        return f"{pace}, a comfortable pace for it (your hours are not known)"
    if not reading.hours.allows(least):
        return f"{pace}; it needs at least {number(least)}, so this is not yet a realistic plan"
    if plan.share == 1:
        return f"{pace}, a comfortable pace for it"
    return f"{pace}; {number(comfortable)} would be comfortable, so everything needs longer"


def _in_weeks(plan: Plan) -> str:
    first, last = plan.first_payment_weeks
    if first == last:
        return f"week {first}"
    return f"week {first} at the earliest, week {last} at the latest"


def write_ninety_days(assessment: Assessment) -> str:
    """Return three months of tasks for the best idea, each with a test at its end."""
    first, second = assessment.fits[:2]
    experiments = _experiments(first.plan)
    months = (_month(first.plan, index, experiments.get(index)) for index in range(len(_MONTHS)))
    return "\n\n".join(
        (
            f"Each month has about {first.plan.hours_a_month} hours at {_whose_pace(assessment)}.",
            *months,
            "If a test fails, repeat it once with another kind of customer. If it fails again, or "
            f"if nobody has paid by the end of week {first.plan.stop_week}, change to "
            f"“{second.idea.name}” ({second.total}/100).",
        )
    )


def _whose_pace(assessment: Assessment) -> str:
    return "your pace" if assessment.reading.hours is not None else "a comfortable pace"


def _experiments(plan: Plan) -> dict[int, Experiment]:
    """The experiment of each month; one that sells has to wait until selling has started."""
    waiting, found = list(plan.idea.experiments), {}
    for index, (_, last_day) in enumerate(_MONTHS):
        possible = [one for one in waiting if plan.sells_by(last_day) or not one.is_sale]
        if possible:
            found[index] = possible[0]
            waiting.remove(possible[0])
    return found


def _month(plan: Plan, index: int, experiment: Experiment | None) -> str:
    first_day, last_day = _MONTHS[index]
    tasks = [f"Put the validation questions to five {plan.idea.customer}"] if not index else []
    if experiment is not None:
        tasks.append(_experiment(plan, experiment))
    tasks += [
        f"{step.text} ({span('week', step.weeks)}{_continued(step, first_day)})"
        for step in plan.steps_within(first_day, last_day)
    ]
    if index == len(_MONTHS) - 1:
        tasks += _last_tasks(plan)
    return (
        f"### Days {first_day}–{last_day}: {_title(plan, index)}\n\n{bullets(tasks)}\n\n"
        f"**Test:** {_test(plan, index, experiment)}."
    )


def _continued(step: Step, first_day: int) -> str:
    return ", continued" if 7 * (step.weeks[0] - 1) + 1 < first_day else ""


def _title(plan: Plan, index: int) -> str:
    first_day, last_day = _MONTHS[index]
    if plan.is_paid_by(first_day - 1):
        return "deliver and improve"
    if not index:
        return "find out and sell" if plan.sells_by(last_day) else "find out"
    return "sell" if plan.sells_by(last_day) else "prepare"


def _last_tasks(plan: Plan) -> list[str]:
    last_day = _MONTHS[-1][1]
    if plan.is_paid_by(last_day):
        return [
            "Ask each customer what nearly stopped them, and fix that first",
            "Divide what you were paid, less costs, by your hours: that is your hourly rate",
        ]
    if plan.sells_by(last_day):
        return ["Ask everybody who said no for the reason, and change the offer"]
    return [f"Collect names for the start of selling in week {plan.first_payment_weeks[0]}"]


def _experiment(plan: Plan, experiment: Experiment) -> str:
    cost = usd(experiment.cost_usd)
    if not plan.affords(experiment):
        cost += ", more than you can spend: do it with what you have, or after a first payment"
    return f"{experiment.do} ({cost})"


def _test(plan: Plan, index: int, experiment: Experiment | None) -> str:
    first_day, last_day = _MONTHS[index]
    if plan.is_paid_by(first_day - 1):
        return "at least one more customer has paid"
    if plan.is_paid_by(last_day):
        return "at least one customer has paid"
    tests = ["the validation questions are passed"] if not index else []
    if experiment is not None:
        tests.append(experiment.pass_if)
    elif plan.sells_by(last_day):
        tests.append(
            "one customer has paid, or two have agreed in writing to pay by a date; the first "
            f"payment may need until week {plan.stop_week}"
        )
    elif index:
        tests.append(
            f"three people ask to hear from you in week {plan.first_payment_weeks[0]}, when you "
            "start to sell"
        )
    return ", and ".join(tests)
