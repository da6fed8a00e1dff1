"""The person's goal, strengths and gaps, and the conclusions from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import catalogue
from app.crews.idea.markdown import bullets, numbered, quote, table
from app.crews.idea.profile import LABELS
from app.crews.idea.reading import Reading
from app.crews.idea.reports import constraints
from app.crews.idea.reports.note import missing_notes, note
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import (
    budget_in_words,
    capital,
    count,
    hours_in_words,
    listing,
    usd,
)

_MOST_GAPS = 3


def write(assessment: Assessment) -> str:
    """Return the report on `assessment`'s profile."""
    sections = (
        ("Motivation", _motivation),
        ("Constraints", constraints.write),
        ("Opportunity", _opportunity),
        ("Strengths", _strengths),
        ("Gaps", _gaps),
        ("Advice", _advice),
        ("Open questions", _open_questions),
    )
    head = f"# Profile analysis\n\n{note()}\n\n{_reading_table(assessment)}"
    return "\n\n".join([head, *(f"## {title}\n\n{body(assessment)}" for title, body in sections)])


def _reading_table(assessment: Assessment) -> str:
    reading = assessment.reading
    meanings = _meanings(reading)
    rows = [
        (label, reading.said[name], meanings[name])
        if reading.said[name]
        else (label, "not told", "counts the same for every idea")
        for name, label in LABELS.items()
    ]
    return table(("Field", "You wrote", "Understood as"), rows)


def _meanings(reading: Reading) -> dict[str, str]:
    known = catalogue()
    styles = [
        known.work_styles[style].name for style in (reading.company, reading.location) if style
    ]
    areas = listing(reading.areas) or "no area of the catalogue"
    if reading.nearest_areas:
        areas = f"no area of the catalogue; nearest: {listing(reading.nearest_areas)}"
    elif reading.is_area_open:
        areas = "any area"
    return {
        "goal_type": known.goals[reading.goal].name if reading.goal else "unclear: neutral",
        "time_commitment": (
            hours_in_words(reading.hours) if reading.hours else "no number of hours: neutral"
        ),
        "budget_range": (
            budget_in_words(reading.budget) if reading.budget else "no sum in dollars: neutral"
        ),
        "interest_area": areas,
        "sub_interest_area": (
            f"ideas about “{reading.said['sub_interest_area']}”" if reading.topics else "any"
        ),
        "work_style": listing(styles) or "no preference: neutral",
        "skill_strength": _skills(reading.skills) or "unclear: neutral",
        "experience_summary": _skills(reading.experience.shown) or "no skill of the catalogue",
    }


def _skills(names: Iterable[str]) -> str:
    return listing([catalogue().skills[name].name for name in names])


def _motivation(assessment: Assessment) -> str:
    reading = assessment.reading
    if reading.goal is None:
        said = reading.said["goal_type"]
        cause = (
            f"You write “{said}”. That does not show whether you want"
            if said
            else "You did not give a goal. It could be"
        )
        return (
            f"{cause} money soon, a full income, growth, some good done or something to learn. So "
            "the goal does not change the order of the ideas. It does change the plan: see the "
            "open questions."
        )
    goal = catalogue().goals[reading.goal]
    lines = [
        f"You want **{goal.name}**: {goal.meaning}.",
        f"A good sign of success would be {goal.success}. Add your own figure and a date.",
    ]
    hours = reading.hours
    if (
        reading.goal == "full-income"
        and hours is not None
        and hours.high < constraints.FULL_WEEK_HOURS
    ):
        lines.append(_few_hours(assessment, hours))
    return "\n\n".join(lines)


def _few_hours(assessment: Assessment, hours: Amount) -> str:
    feasible = [fit for fit in assessment.fits if fit.is_within_limits]
    careful = f"Be careful: {hours_in_words(hours)} is little for that."
    if not feasible:
        return f"{careful} No idea of the catalogue is inside your hours and your budget."
    most = max(fit.plan.earnings_usd[1] for fit in feasible)
    return (
        f"{careful} Among the ideas within your limits, the highest earnings at your hours are "
        f"{usd(most)} a month, before tax and costs. Use the first year as the proof, and plan how "
        "to find more hours if it works."
    )


def _opportunity(assessment: Assessment) -> str:
    reading = assessment.reading
    areas = [area for area in catalogue().areas if area.name in reading.areas]
    paragraphs = [f"**{area.name}.** {area.outlook}" for area in areas[:2]]
    paragraphs += missing_notes(assessment)
    if reading.is_area_open:
        paragraphs.append(
            "You leave the area open, so everything else that you wrote decides the order."
        )
    core = [fit for fit in assessment.fits if fit.idea.skills[0] in reading.skills]
    in_area = [fit for fit in core if fit.area.name in reading.areas]
    if in_area:
        verb = "rests" if len(in_area) == 1 else "rest"
        paragraphs.append(
            f"Your interest and your strength meet: {count(len(in_area), 'idea')} in "
            f"{listing(reading.areas)} {verb} mainly on {_skills(reading.skills)}."
        )
    paragraphs.append("The best matches by the scores of the research report:")
    paragraphs.append(numbered(_headline(fit) for fit in assessment.fits[:3]))
    return "\n\n".join(paragraphs)


def _headline(fit: Fit) -> str:
    return f"**{fit.idea.name}** ({fit.total}/100). {fit.idea.pitch}"


def _strengths(assessment: Assessment) -> str:
    reading, known = assessment.reading, catalogue()
    points = [
        f"**{capital(known.skills[skill].name)}**, which you name yourself: "
        f"{known.skills[skill].use}."
        for skill in reading.skills
    ]
    for skill, words in reading.experience.shown.items():
        if skill not in reading.skills:
            quoted = listing([f"“{word}”" for word in words[:3]])
            points.append(
                f"**{capital(known.skills[skill].name)}**, from your experience ({quoted}): "
                f"{known.skills[skill].use}."
            )
    if reading.experience.most_years:
        points.append(
            f"**{count(reading.experience.most_years, 'year')} of experience:** you know who pays "
            "in that field and what their problems are. Ask former colleagues and customers first."
        )
    if reading.experience.is_given:
        excerpt = quote(reading.profile.experience_summary, most_characters=200)
        points.append(f"In your own words: “{excerpt}”")
    else:
        points.append(
            "You gave no summary of your experience"
            + (", so this rests only on the skill that you named. " if reading.skills else ". ")
            + "Two sentences about your work so far would make the ranking more exact."
        )
    return bullets(points)


def _gaps(assessment: Assessment) -> str:
    reading, known = assessment.reading, catalogue()
    best = assessment.fits[:3]
    missing = Counter(
        skill
        for fit in best
        for skill in fit.idea.skills
        if skill not in (reading.shown_skills | reading.experience.denied.keys())
    )
    is_known = bool(reading.said["skill_strength"]) or reading.experience.is_given
    unseen = ", and does not show in your profile" if is_known else ""
    points = [
        f"**{capital(known.skills[skill].name)}** is needed by {_shown_by(times)}{unseen}. "
        f"A cheap way to begin: {known.skills[skill].learn}."
        for skill, times in missing.most_common(_MOST_GAPS)
    ]
    for skill, words in reading.experience.denied.items():
        quoted = listing([f"“{word}”" for word in words[:2]])
        points.append(
            f"**{capital(known.skills[skill].name)}** you say you lack ({quoted}). Ideas that rest "
            "on it lose points for that. Find a partner who has it, or avoid it."
        )
    points += [
        f"**{fit.idea.name}** goes beyond your limits. {'. '.join(fit.shortfalls)}."
        for fit in best
        if not fit.is_within_limits
    ]
    if not points:
        points.append(
            "The first three ideas need no skill that you have not shown. Still unknown is whether "
            "customers buy it from you. Only they can answer that."
        )
    intro = "" if is_known else "You named no skill, so only you know which of these you lack.\n\n"
    return f"{intro}{bullets(points)}"


def _shown_by(times: int) -> str:
    return f"{('one', 'two', 'all')[times - 1]} of your first three ideas"


def _advice(assessment: Assessment) -> str:
    reading, best, second = assessment.reading, assessment.fits[0], assessment.fits[1]
    idea = best.idea
    advice = [
        f"Begin with people, not with tools: talk to five {idea.customer} before you build "
        f"anything for “{idea.name}”.",
        f"Then run the first test. {idea.experiments[0].do}. It is passed if "
        f"{idea.experiments[0].pass_if}.",
    ]
    if reading.hours is not None and reading.hours.high < constraints.FULL_WEEK_HOURS:
        advice.append(
            "Put your hours into the calendar now, in blocks of at least an hour. Use one block in "
            "three to find customers."
        )
    else:
        advice.append("Set working hours and one free day now, and plan time to find customers.")
    missing = next((skill for skill in idea.skills if skill not in reading.shown_skills), None)
    if missing is not None and reading.shown_skills:
        skill = catalogue().skills[missing]
        advice.append(f"Close one gap only, {skill.name}. To begin, {skill.learn}.")
    advice.append(
        f"Decide today when you stop: if nobody has paid by the end of week {best.plan.stop_week}, "
        f"change to “{second.idea.name}” instead of improving the first idea."
    )
    return numbered(advice)


def _open_questions(assessment: Assessment) -> str:
    reading, idea = assessment.reading, assessment.fits[0].idea
    questions = []
    if reading.goal is None:
        questions.append("What would you like to have a year from now that you do not have today?")
    else:
        questions.append("How much a month would be enough, and by which date?")
    if reading.hours is None:
        questions.append("How many hours a week can you give in an ordinary week?")
    else:
        questions.append("Which hours of the week are these, and what do you give up for them?")
    if reading.budget is None:
        questions.append("How many dollars could you lose without harm?")
    if not reading.experience.is_given:
        questions.append("What have you been paid for so far, and what do colleagues ask you for?")
    elif not reading.experience.shown:
        questions.append(
            "Which skills have you used in your work? The summary names none that counts here."
        )
    questions += _interest_questions(assessment)
    if not reading.skills:
        questions.append("What do others say that you are good at?")
    questions.append(f"Who do you already know among {idea.customer}?")
    return bullets(questions)


def _interest_questions(assessment: Assessment) -> list[str]:
    reading = assessment.reading
    if not reading.said["interest_area"] and not reading.topics:
        return ["Which field interests you, and which customers in it do you know?"]
    if not reading.topics:
        return []
    said, near = reading.said["sub_interest_area"], reading.near_areas
    if near and reading.topic_areas and near.isdisjoint(reading.topic_areas):
        return [
            f"You name “{said}” within {listing(reading.areas or reading.nearest_areas)}; the "
            f"catalogue knows it from {listing(reading.topic_areas)}. Do you want to join the two, "
            "or which of them is more important?"
        ]
    if not reading.topic_areas:
        return [f"What exactly interests you in “{said}”, and who pays for it today?"]
    return []
