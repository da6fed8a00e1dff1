"""The three best ideas, a choice between them, and a plan for the first."""

from __future__ import annotations

from math import ceil, inf

from app.crews.idea.catalogue import Idea, catalogue
from app.crews.idea.markdown import bullets, checkboxes, numbered, table
from app.crews.idea.outlook import MONTHS, Outlook, cautious, first_payment_weeks, hopeful, pace
from app.crews.idea.reports.note import note
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import (
    budget_in_words,
    count,
    hours_in_words,
    listing,
    number,
    usd,
    usd_range,
)

_WEEKS_A_MONTH = 52 / 12
_DAYS_90_IN_WEEKS = 13


def write(assessment: Assessment) -> str:
    """Return the recommendations for `assessment`'s profile."""
    best = assessment.fits[:3]
    sections = (
        ("Top 3", _top(best)),
        ("Ranking matrix", _matrix(best)),
        ("Execution path", _path(assessment)),
        ("Financial outlook", _finances(assessment, best)),
        ("Risk radar", _risks(best)),
        ("Customer persona", _persona(best[0].idea)),
        ("Validation questions", _validation(best[0].idea)),
        ("30/60/90-day plan", _plan(assessment)),
        ("Decision checklist", _checklist(assessment)),
    )
    head = f"# Personalized recommendations\n\n{note()}"
    return "\n\n".join([head, *(f"## {title}\n\n{body}" for title, body in sections)])


def _top(best: tuple[Fit, ...]) -> str:
    first, second, third = best
    margin = first.total - second.total
    if margin > 5:
        decision = f"It leads by {count(margin, 'point')}, so the choice is clear enough to act on."
    elif margin:
        decision = (
            f"It leads by only {count(margin, 'point')}: if you know customers of "
            f"“{second.idea.name}” better, take that one."
        )
    else:
        decision = (
            f"It ties with “{second.idea.name}”: take the one whose customers you know better."
        )
    return "\n\n".join(
        (
            f"**Start with “{first.idea.name}”.** {decision} Keep “{third.idea.name}” as the third "
            "choice, and do not run two at once.",
            numbered(_choice(fit) for fit in best),
        )
    )


def _choice(fit: Fit) -> str:
    strongest = sorted(fit.scores, key=lambda score: score.points - score.most_points)
    reasons = [score for score in reversed(strongest) if score.points > score.most_points / 2][:2]
    why = ". ".join(score.reason for score in reasons)
    lines = [f"**{fit.idea.name}** ({fit.total}/100). {fit.idea.pitch}"]
    if why:
        lines.append(f"For it: {why}.")
    if not fit.is_within_limits:
        lines.append(f"Outside your limits: {'. '.join(fit.shortfalls)}.")
    skill = catalogue().skills[fit.idea.skills[0]]
    lines.append(
        f"Leave it if {skill.dislike}, or if you cannot keep "
        f"{count(fit.idea.hours_per_week[0], 'hour')} free in every single week."
    )
    return " ".join(lines)


def _matrix(best: tuple[Fit, ...]) -> str:
    rows = [
        (
            f"{scores[0].criterion} ({scores[0].most_points})",
            *(str(score.points) for score in scores),
        )
        for scores in zip(*(fit.scores for fit in best), strict=True)
    ]
    rows.append(("**Total (100)**", *(f"**{fit.total}**" for fit in best)))
    rows.append(("Start-up cost", *(usd_range(fit.idea.startup_cost_usd) for fit in best)))
    rows.append(("Hours per week", *(number(fit.idea.hours_per_week[0]) + "+" for fit in best)))
    rows.append(("Within your limits", *("yes" if fit.is_within_limits else "no" for fit in best)))
    header = ("Criterion (most points)", *(fit.idea.name for fit in best))
    return (
        f"{table(header, rows)}\n\nThe reasons for the points stand in the research report. Equal "
        "totals put the cheaper start first."
    )


def _path(assessment: Assessment) -> str:
    idea, hours = assessment.fits[0].idea, assessment.reading.hours
    share = pace(idea, hours)
    paid_by = first_payment_weeks(idea, share)[1]
    before_payment = len(idea.steps) - 2
    ends = [ceil(paid_by * (step + 1) / before_payment) for step in range(before_payment)]
    ends += [paid_by + 6, paid_by + 16]
    rows, start = [], 1
    for step, planned_end in zip(idea.steps, ends, strict=True):
        end = max(planned_end, start)
        rows.append((f"Week {start}" if start == end else f"Weeks {start}–{end}", step))
        start = end + 1
    weekly = min(hours.high, idea.hours_per_week[1]) if hours else idea.hours_per_week[1]
    speed = (
        f"at {number(weekly)} hrs/week, the comfortable pace for it"
        if share == 1
        else f"at {number(weekly)} hrs/week, where {number(idea.hours_per_week[1])} would be "
        "comfortable, so everything takes longer"
    )
    return (
        f"The way for “{idea.name}”, reckoned {speed}:\n\n{table(('When', 'Step'), rows)}\n\nThe "
        f"first payment can be expected between week {first_payment_weeks(idea, share)[0]} and "
        f"week {paid_by}. Do not begin a step before the one above it is done."
    )


def _finances(assessment: Assessment, best: tuple[Fit, ...]) -> str:
    idea, budget = best[0].idea, assessment.reading.budget
    share = pace(idea, assessment.reading.hours)
    low, high = cautious(idea, share), hopeful(idea, share)
    rows = [
        (f"Month {month}", usd(low.balance_usd[month - 1]), usd(high.balance_usd[month - 1]))
        for month in (1, 3, 6, 12, 18)
    ]
    loss = idea.startup_cost_usd[1]
    paragraphs = [
        f"The balance of “{idea.name}” since the first day, everything earned less everything "
        "spent, before tax:",
        table(("End of", "Cautious", "Hopeful"), rows),
        f"Assumptions: {usd_range(idea.startup_cost_usd)} to start, "
        f"{usd_range(idea.running_cost_usd)} a month from the first payment on, earnings that rise "
        f"evenly to {usd_range(idea.monthly_earnings_usd)} a month over "
        f"{count(idea.ramp_months, 'month')}{_reduced(share)}. Cautious takes the worse end of "
        "every range, hopeful the better one.",
        f"All money is back {_back(low)} in the cautious case and {_back(high)} in the hopeful "
        f"one. If nobody ever pays, you lose up to {usd(loss)} and the hours.",
    ]
    if budget is not None and not budget.allows(loss):
        paragraphs.append(
            f"The dearer way to start ({usd(loss)}) is above your budget, {budget_in_words(budget)}"
            f": begin at {usd(idea.startup_cost_usd[0])} and buy the rest from the first payments."
            if best[0].is_within_budget
            else f"Even the cheapest start ({usd(idea.startup_cost_usd[0])}) is above your budget, "
            f"{budget_in_words(budget)}: find that sum first or take the next idea."
        )
    others = [
        f"**{fit.idea.name}:** {usd_range(fit.idea.startup_cost_usd)} to start, "
        f"{usd_range(fit.idea.monthly_earnings_usd)} a month after "
        f"{count(fit.idea.ramp_months, 'month')}."
        for fit in best[1:]
    ]
    return "\n\n".join([*paragraphs, f"For comparison:\n\n{bullets(others)}"])


def _reduced(share: float) -> str:
    return "" if share == 1 else f", all times {round(100 * share)} % of that for your hours"


def _back(outlook: Outlook) -> str:
    month = outlook.break_even_month
    if month is None:
        return f"not within {MONTHS} months"
    return f"by the end of month {month}"


def _risks(best: tuple[Fit, ...]) -> str:
    rows = [
        (str(place), risk.risk, risk.sign, risk.response)
        for place, fit in enumerate(best, start=1)
        for risk in fit.idea.risks[: 2 if place == 1 else 1]
    ]
    rows.append(
        (
            "all",
            "Life gets in the way",
            "Two weeks without a talk to a customer",
            "Halve the plan instead of stopping it, and tell the customers you have",
        )
    )
    return table(("Idea", "Risk", "Early sign", "Response"), rows)


def _persona(idea: Idea) -> str:
    return (
        f"One believable customer of “{idea.name}”, to be corrected by your talks:\n\n"
        f"> {idea.persona}"
    )


def _validation(idea: Idea) -> str:
    questions = (
        *idea.questions,
        "What have you already tried or paid for, and what became of it?",
        "May I show you something in two weeks, and will you pay for it if it does what we spoke "
        "about?",
    )
    return (
        f"Ask five {idea.customer}. Ask about last week, never about your idea:\n\n"
        f"{numbered(questions)}\n\nGo on if at least three of the five describe the trouble before "
        "you name it and one agrees to the last question. Otherwise change the customer or the "
        "idea."
    )


def _plan(assessment: Assessment) -> str:
    first, second = assessment.fits[:2]
    idea, hours = first.idea, assessment.reading.hours
    share = pace(idea, hours)
    weeks = first_payment_weeks(idea, share)[1]
    weekly = min(hours.high, idea.hours_per_week[1]) if hours else idea.hours_per_week[1]
    month = number(round(weekly * _WEEKS_A_MONTH))
    paid = (
        "at least one customer has paid"
        if weeks <= _DAYS_90_IN_WEEKS
        else f"two customers have agreed to pay by a date (payments take up to {weeks} weeks here)"
    )
    tests = idea.experiments
    parts = (
        (
            "Days 1–30: find out",
            [
                f"Ask the validation questions of five {idea.customer}",
                f"{tests[0].do} ({usd(tests[0].cost_usd)})",
                idea.steps[0],
                idea.steps[1],
            ],
            f"{tests[0].pass_if}, and the validation questions are passed",
        ),
        (
            "Days 31–60: offer it",
            [
                f"{tests[1].do} ({usd(tests[1].cost_usd)})",
                idea.steps[2],
                "Name a price to everybody who shows interest and write down what they answer",
            ],
            tests[1].pass_if,
        ),
        (
            "Days 61–90: deliver and decide",
            [
                idea.steps[3],
                "Ask each customer what nearly stopped them, and mend that first",
                f"If the test below is passed: {_lower(idea.steps[4])}",
            ],
            paid,
        ),
    )
    blocks = [
        f"### {title}\n\n{bullets(tasks)}\n\n**Test:** {test}." for title, tasks, test in parts
    ]
    blocks.insert(0, f"Each part has about {month} hours at your pace.")
    blocks.append(
        "A test that fails once may be repeated with another kind of customer. If it fails twice, "
        f"go on to “{second.idea.name}” ({second.total}/100)."
    )
    return "\n\n".join(blocks)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _checklist(assessment: Assessment) -> str:
    reading, (best, second) = assessment.reading, assessment.fits[:2]
    idea = best.idea
    budget = reading.budget
    hours = (
        hours_in_words(reading.hours)
        if reading.hours and reading.hours.high < inf
        else f"{count(idea.hours_per_week[0], 'hour')} a week"
    )
    items = [
        f"I can name three {idea.customer} and how I will reach them this week",
        f"My {hours} stand in the calendar for the next four weeks",
        f"I can lose {usd(idea.startup_cost_usd[1])} and ninety days of these hours without harm",
        f"I have read the risks of “{idea.name}” and know which I would see first",
        "I know my figure: how much a month, by when, makes this a success",
        "I have checked what my employer, my town and the tax office want to know about it",
        f"One person besides me knows the date on which I go on to “{second.idea.name}”",
    ]
    if budget is None:
        items.append("I have written down the sum that I will not exceed")
    missing = [skill for skill in idea.skills if skill not in reading.skills]
    missing = [skill for skill in missing if skill not in reading.experience.shown]
    if missing:
        names = listing([catalogue().skills[skill].name for skill in missing])
        items.append(f"I know how I will come by what I lack: {names}")
    items += [f"I have an answer to this: {_lower(lack)}" for lack in best.shortfalls]
    return (
        f"{checkboxes(items)}\n\nStart if you can tick all but one. If two or more stay open, "
        "settle them first: that is cheaper now than in month three."
    )
