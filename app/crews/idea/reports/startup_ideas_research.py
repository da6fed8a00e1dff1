"""The ideas that fit best, each with what speaks for it and against it."""

from __future__ import annotations

from app.crews.idea.markdown import bullets, numbered, table
from app.crews.idea.reading import Reading
from app.crews.idea.reports.note import missing_notes, note, weak_fit_notes
from app.crews.idea.schedule import MONTHS, Plan
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import count, listing, number, number_range, span, usd, usd_range

_RECOMMENDED = 3
_LEAST_SHOWN, _MOST_SHOWN = 5, 6
_WEAK_TOTAL = 50


def write(assessment: Assessment) -> str:
    """Return the report on the best ideas for `assessment`'s profile."""
    shown = _shown(assessment)
    parts = [
        "# Startup ideas research",
        note(),
        "## Executive summary",
        _summary(assessment, shown),
        *(_idea(rank, fit, assessment) for rank, fit in enumerate(shown, start=1)),
    ]
    return "\n\n".join(parts)


def _shown(assessment: Assessment) -> tuple[Fit, ...]:
    """The first five ideas, and the sixth if it is about the person's interest and possible."""
    sixth = assessment.fits[_LEAST_SHOWN]
    is_close = sixth.is_within_limits and sixth.area.name in assessment.reading.areas
    return assessment.fits[: _MOST_SHOWN if is_close else _LEAST_SHOWN]


def limits(fit: Fit, reading: Reading) -> str:
    """Return in a few words whether the person's limits allow the idea."""
    needs = [
        need
        for need, is_within in (("time", fit.is_within_hours), ("money", fit.is_within_budget))
        if not is_within
    ]
    if needs:
        return f"needs more {listing(needs)}"
    is_known = reading.hours is not None and reading.budget is not None
    return "inside" if is_known else "inside as far as known"


def _summary(assessment: Assessment, shown: tuple[Fit, ...]) -> str:
    overview = table(
        (
            "#",
            "Idea",
            "Total",
            "Start-up cost",
            "Hrs/week",
            "Monthly earnings",
            "Your limits",
        ),
        (
            (
                str(rank),
                fit.idea.name,
                str(fit.total),
                usd_range(fit.idea.startup_cost_usd),
                number_range(fit.idea.hours_per_week),
                usd_range(fit.plan.earnings_usd),
                limits(fit, assessment.reading),
            )
            for rank, fit in enumerate(shown, start=1)
        ),
    )
    criteria = listing(
        [f"{score.criterion.lower()} ({score.most_points})" for score in shown[0].scores]
    )
    paragraphs = [
        *missing_notes(assessment),
        *weak_fit_notes(assessment),
        f"These are the {len(shown)} best of {len(assessment.fits)} ideas for you. Each is scored "
        f"on {criteria}, 100 points in all. An idea that needs more hours or money than you have "
        "loses points. Equal totals put the cheaper start first, then the quicker first payment.",
        overview,
        f"Monthly earnings are those at {_pace(assessment)}, before tax and running costs, once "
        "the idea has grown for the months that its section names.",
        _lead(shown[0], shown[1]),
    ]
    if others := _for_comparison(assessment, shown):
        paragraphs.append(others)
    if missed := _just_outside(assessment, shown):
        paragraphs.append(missed)
    return "\n\n".join(paragraphs)


def _pace(assessment: Assessment) -> str:
    return "your hours" if assessment.reading.hours is not None else "a comfortable pace"


def _lead(first: Fit, second: Fit) -> str:
    margin = first.total - second.total
    ahead = max(
        zip(first.scores, second.scores, strict=True),
        key=lambda pair: pair[0].points - pair[1].points,
    )
    gain = ahead[0].points - ahead[1].points
    if not gain:
        return (
            f"“{first.idea.name}” and “{second.idea.name}” have equal points on every criterion. "
            "Choose the one whose customers you know better."
        )
    lead = (
        f"leads “{second.idea.name}” by {count(margin, 'point')}"
        if margin
        else f"has as many points as “{second.idea.name}” and costs no more to start"
    )
    return (
        f"“{first.idea.name}” {lead}. Its largest advantage is "
        f"{ahead[0].criterion.lower()} (+{gain}). {ahead[0].reason}."
    )


def _for_comparison(assessment: Assessment, shown: tuple[Fit, ...]) -> str:
    """Return a sentence about the shown ideas that are not really what the person looks for."""
    areas = assessment.reading.areas
    names = [
        f"“{fit.idea.name}”"
        for fit in shown[_RECOMMENDED:]
        if fit.total < _WEAK_TOTAL or (areas and fit.area.name not in areas)
    ]
    if not names:
        return ""
    return f"Only for comparison, with a weaker fit: {listing(names)}."


def _just_outside(assessment: Assessment, shown: tuple[Fit, ...]) -> str:
    outside = [
        fit
        for fit in assessment.fits[len(shown) :]
        if not fit.is_within_limits and fit.area.name in assessment.reading.areas
    ]
    if not outside:
        return ""
    fit = outside[0]
    return (
        f"Left out, but interesting if your limits change: “{fit.idea.name}” ({fit.total}/100). "
        f"{'. '.join(fit.shortfalls)}."
    )


def _idea(rank: int, fit: Fit, assessment: Assessment) -> str:
    idea = fit.idea
    return "\n\n".join(
        (
            f"## Idea {rank}: {idea.name} ({fit.total}/100)",
            idea.pitch,
            f"### Fit\n\n{_fit(fit)}",
            f"### Market\n\nCustomers: {idea.customer}. {idea.market}",
            f"### Revenue and costs\n\n{_money(fit)}",
            f"### Effort\n\n{number_range(idea.hours_per_week)} hrs/week. {idea.effort}",
            f"### Risks\n\n{_risks(fit)}",
            f"### First experiments\n\n{_experiments(fit)}",
        )
    )


def _fit(fit: Fit) -> str:
    rows = [
        (score.criterion, str(score.points), str(score.most_points), score.reason)
        for score in fit.scores
    ]
    rows.append(("**Total**", f"**{fit.total}**", "**100**", ""))
    scores = table(("Criterion", "Points", "Of", "Why"), rows)
    if fit.is_within_limits:
        return scores
    return f"{scores}\n\n**Outside your limits.** {'. '.join(fit.shortfalls)}."


def _money(fit: Fit) -> str:
    idea, plan = fit.idea, fit.plan
    pace = f"{number(plan.hours_a_week)} hrs/week"
    lines = [
        f"**Price:** {idea.revenue}",
        f"**To start:** {usd_range(idea.startup_cost_usd)} until the first customer pays"
        f"{_within_budget(plan)}.",
        f"**Running:** {usd_range(idea.running_cost_usd)} a month.",
        f"**First payment:** {span('week', plan.first_payment_weeks)} at {pace}.",
        f"**Earnings:** {usd_range(plan.earnings_usd)} a month at {pace}, "
        f"{count(idea.ramp_months, 'month')} after the first payment, before tax and running "
        "costs.",
    ]
    if plan.loses_money:
        balance = usd(plan.cautious.balance_usd[-1])
        lines.append(f"**Cautious case:** a balance of {balance} after {MONTHS} months.")
    return bullets(lines)


def _within_budget(plan: Plan) -> str:
    if plan.startup_usd == plan.idea.startup_cost_usd:
        return ""
    return f"; the plan spends {usd_range(plan.startup_usd)}, to stay near your budget"


def _risks(fit: Fit) -> str:
    return bullets(
        f"**{risk.risk}.** Early sign: {risk.sign}. Response: {risk.response}."
        for risk in fit.idea.risks
    )


def _experiments(fit: Fit) -> str:
    return numbered(
        f"{experiment.do}. Cost: {usd(experiment.cost_usd)}. Passed if {experiment.pass_if}."
        for experiment in fit.idea.experiments
    )
