"""The three best ideas, a choice between them, and a plan for the first."""

from __future__ import annotations

from app.crews.idea.catalogue import Idea, catalogue
from app.crews.idea.markdown import checkboxes, numbered, table
from app.crews.idea.reports import finances, plan
from app.crews.idea.reports.note import (
    is_weak,
    missing_facts,
    missing_notes,
    note,
    weak_fit_notes,
)
from app.crews.idea.reports.startup_ideas_research import limits
from app.crews.idea.schedule import Plan
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.subjects import Match
from app.crews.idea.wording import count, listing, number_range, usd, usd_range

_DISTINCTIVE = ("Sub-interest", "Experience", "Skills", "Goal", "Interest area")
"""The criteria that distinguish an idea for a person, the most significant first."""

_STRONG_SHARE = 0.6


def write(assessment: Assessment) -> str:
    """Return the recommendations for `assessment`'s profile."""
    best = assessment.fits[:3]
    sections = (
        ("Top 3", _top(assessment)),
        ("Ranking matrix", _matrix(assessment)),
        ("Execution path", plan.write_path(assessment)),
        ("Financial outlook", finances.write(assessment)),
        ("Risk radar", _risks(best)),
        ("Customer persona", _persona(best[0].idea)),
        ("Validation questions", _validation(best[0].idea)),
        ("30/60/90-day plan", plan.write_ninety_days(assessment)),
        ("Decision checklist", _checklist(assessment)),
    )
    head = f"# Personalized recommendations\n\n{note()}"
    return "\n\n".join([head, *(f"## {title}\n\n{body}" for title, body in sections)])


def _top(assessment: Assessment) -> str:
    best = assessment.fits[:3]
    first, second, third = best
    margin = first.total - second.total
    if margin > 5:
        decision = f"It leads by {count(margin, 'point')}, so it is clearly ahead."
    elif margin:
        decision = (
            f"It leads by only {count(margin, 'point')}: if you know the customers of "
            f"“{second.idea.name}” better, choose that one."
        )
    else:
        decision = (
            f"It has as many points as “{second.idea.name}”: choose the one whose customers you "
            "know better."
        )
    return "\n\n".join(
        (
            *missing_notes(assessment),
            *weak_fit_notes(assessment),
            f"**{_lead(assessment)} “{first.idea.name}”.** {decision} Keep “{third.idea.name}” as "
            "the third choice, and do not run two at once.",
            numbered(_choice(fit) for fit in best),
        )
    )


def _lead(assessment: Assessment) -> str:
    """Return the beginning of the advice: no advice to start if little speaks for the idea."""
    best = assessment.fits[0]
    is_other = bool(assessment.unmet_wishes) and best.match < Match.PART
    is_clear = not (is_other or is_weak(assessment) or missing_facts(assessment))
    return "Start with" if is_clear and best.is_within_limits else "Closest to you is"


def _choice(fit: Fit) -> str:
    lines = [f"**{fit.idea.name}** ({fit.total}/100). {fit.idea.pitch}"]
    scores = {score.criterion: score for score in fit.scores}
    reasons = [
        scores[criterion].reason
        for criterion in _DISTINCTIVE
        if scores[criterion].points > _STRONG_SHARE * scores[criterion].most_points
    ]
    if reasons:
        lines.append(f"For it: {'. '.join(reasons[:2])}.")
    if not fit.is_within_limits:
        lines.append(f"Against it: {'. '.join(fit.shortfalls)}.")
    skill = catalogue().skills[fit.idea.skills[0]]
    lines.append(
        f"Do not choose it if {skill.dislike}, or if you cannot keep "
        f"{count(fit.idea.hours_per_week[0], 'hour')} free every week."
    )
    return " ".join(lines)


def _matrix(assessment: Assessment) -> str:
    best = assessment.fits[:3]
    rows = [
        (
            f"{scores[0].criterion} ({scores[0].most_points})",
            *(str(score.points) for score in scores),
        )
        for scores in zip(*(fit.scores for fit in best), strict=True)
    ]
    rows.append(("**Total (100)**", *(f"**{fit.total}**" for fit in best)))
    rows.append(("Start-up cost", *(usd_range(fit.idea.startup_cost_usd) for fit in best)))
    rows.append(("Hrs/week", *(number_range(fit.idea.hours_per_week) for fit in best)))
    rows.append(("Your limits", *(limits(fit, assessment.reading) for fit in best)))
    header = ("Criterion (most points)", *(fit.idea.name for fit in best))
    return f"{table(header, rows)}\n\nThe research report gives the reason for each score."


def _risks(best: tuple[Fit, ...]) -> str:
    rows = [
        (str(rank), risk.risk, risk.sign, risk.response)
        for rank, fit in enumerate(best, start=1)
        for risk in fit.idea.risks[: 2 if rank == 1 else 1]
    ]
    rows.append(
        (
            "all",
            "Other duties need your time",
            "Two weeks without a conversation with a customer",
            "Halve the plan instead of stopping it, and inform your customers",
        )
    )
    return table(("Idea", "Risk", "Early sign", "Response"), rows)


def _persona(idea: Idea) -> str:
    return (
        f"One invented but likely customer of “{idea.name}”. Correct it with what you learn:\n\n"
        f"> {idea.persona}"
    )


def _validation(idea: Idea) -> str:
    questions = (
        *idea.questions,
        "What have you already tried or paid for, and how well did it work?",
        "May I show you something in two weeks, and will you pay for it if it solves this?",
    )
    return (
        f"Ask five {idea.customer}. Ask about last week, not about your idea:\n\n"
        f"{numbered(questions)}\n\nPassed if at least three of the five describe the problem "
        "before you name it, and one agrees to the last question. Otherwise change the customer or "
        "the idea."
    )


def _checklist(assessment: Assessment) -> str:
    reading, (best, second) = assessment.reading, assessment.fits[:2]
    idea = best.idea
    items = [
        f"You can name three {idea.customer} and how to reach them this week",
        f"Your calendar has {count(best.plan.hours_a_week, 'hour')} a week for it until week "
        f"{best.plan.stop_week}",
        f"You can lose {_at_stake(best.plan)}the hours of {count(best.plan.stop_week, 'week')}",
        f"You have read the risks of “{idea.name}” and know which sign you would see first",
        "You know how much a month, and by when, makes this a success",
        "You have checked the rules of your employer, your town and the tax office",
        f"One other person knows that you change to “{second.idea.name}” after week "
        f"{best.plan.stop_week} without a payment",
    ]
    if reading.budget is None:
        items.append("You have written down the sum that you will not exceed")
    missing = [catalogue().skills[s].name for s in idea.skills if s not in reading.shown_skills]
    if missing:
        these = "this skill" if len(missing) == 1 else "these skills"
        items.append(f"You have, or know somebody who has, {these}: {listing(missing)}")
    items += [f"You have an answer to this: {lack}" for lack in best.shortfalls]
    return (
        f"{checkboxes(items)}\n\nStart if you can tick all but one. If more are open, solve them "
        "first."
    )


def _at_stake(plan: Plan) -> str:
    if not plan.at_stake_usd:
        return ""
    month, low = plan.cautious.lowest
    cause = (
        f", the lowest balance of the cautious case (end of month {month}),"
        if -low > plan.startup_usd[1]
        else ""
    )
    return f"{usd(plan.at_stake_usd)}{cause} and "
