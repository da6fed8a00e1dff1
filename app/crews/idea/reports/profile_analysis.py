"""The person's goal, strengths and gaps, and the conclusions from them."""

from __future__ import annotations

from collections import Counter

from app.crews.idea.catalogue import catalogue
from app.crews.idea.markdown import bullets, numbered, quote, table
from app.crews.idea.outlook import first_payment_weeks, pace
from app.crews.idea.reports import constraints
from app.crews.idea.reports.note import note
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
    reading, known = assessment.reading, catalogue()
    goal = known.goals[reading.goal].name if reading.goal else "no goal that I know: neutral"
    hours = hours_in_words(reading.hours) if reading.hours else "no number of hours: neutral"
    budget = budget_in_words(reading.budget) if reading.budget else "no sum in dollars: neutral"
    areas = listing(reading.areas) or (
        "any area" if reading.is_area_open else "no area of the catalogue"
    )
    topics = f"ideas about “{reading.said['sub_interest_area']}”" if reading.topics else "any"
    styles = [
        known.work_styles[style].name for style in (reading.company, reading.location) if style
    ]
    skills = [known.skills[skill].name for skill in reading.skills]
    shown = [known.skills[skill].name for skill in reading.experience.shown]
    without = "no skill that I know" if reading.experience.is_given else "not told"
    meanings = {
        "goal_type": ("Goal", goal),
        "time_commitment": ("Time", hours),
        "budget_range": ("Budget", budget),
        "interest_area": ("Interest", areas),
        "sub_interest_area": ("Sub-interest", topics),
        "work_style": ("Work style", listing(styles) or "no preference: neutral"),
        "skill_strength": ("Strength", listing(skills) or "no skill that I know: neutral"),
        "experience_summary": ("Experience", listing(shown) or without),
    }
    rows = [(label, reading.said[name], meaning) for name, (label, meaning) in meanings.items()]
    return table(("Field", "You wrote", "I reckon with"), rows)


def _motivation(assessment: Assessment) -> str:
    reading = assessment.reading
    if reading.goal is None:
        return (
            f"You write “{reading.said['goal_type']}”. I cannot tell from that whether you want "
            "money soon, a full income, growth, some good done or something to learn, so the goal "
            "does not change the order of the ideas. It changes the plan, though: see the open "
            "questions."
        )
    goal = catalogue().goals[reading.goal]
    lines = [
        f"You want **{goal.name}**: {goal.meaning}.",
        f"A fair picture of success would be {goal.success}. Put your own figure and a date to it.",
    ]
    hours = reading.hours
    if (
        reading.goal == "full-income"
        and hours is not None
        and hours.high < constraints.FULL_WEEK_HOURS
    ):
        feasible = [fit for fit in assessment.fits if fit.is_within_limits]
        most = max((fit.idea.monthly_earnings_usd[1] for fit in feasible), default=0)
        lines.append(
            f"Be warned: {hours_in_words(hours)} is little for that. Among the ideas within your "
            f"limits the highest planning range ends at {usd(most)} a month, before tax and costs, "
            "and at a pace that you may not have. Treat the first year as the proof, and plan how "
            "your hours would grow if it succeeds."
        )
    return "\n\n".join(lines)


def _opportunity(assessment: Assessment) -> str:
    reading = assessment.reading
    areas = [area for area in catalogue().areas if area.name in reading.areas]
    paragraphs = [f"**{area.name}.** {area.outlook}" for area in areas[:2]]
    if not areas:
        paragraphs.append(
            "You leave the area open, so the ideas below are chosen by everything else you wrote."
            if reading.is_area_open
            else f"The catalogue has no area for “{reading.said['interest_area']}”, so the ideas "
            "below are chosen by everything else you wrote. Look in each for a customer from your "
            "own field: knowing the customer is worth more than any of these scores."
        )
    core = [fit for fit in assessment.fits if fit.idea.skills[0] in reading.skills]
    in_area = [fit for fit in core if fit.area.name in reading.areas]
    if in_area:
        skills = listing([catalogue().skills[skill].name for skill in reading.skills])
        verb = "rests" if len(in_area) == 1 else "rest"
        paragraphs.append(
            f"Your interest and your strength meet: {count(len(in_area), 'idea')} in "
            f"{listing(reading.areas)} {verb} first of all on {skills}."
        )
    paragraphs.append("What fits you best by the scores of the research report:")
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
            "in that field and what annoys them. Ask former colleagues and customers first."
        )
    if reading.experience.is_given:
        excerpt = quote(reading.profile.experience_summary, most_characters=200)
        points.append(f"In your own words: “{excerpt}”")
    else:
        points.append(
            "You gave no summary of your experience, so this rests on the skill you named alone. "
            "Two sentences about your work so far would sharpen the ranking."
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
    points = [
        f"**{capital(known.skills[skill].name)}**, asked for by {_shown_by(times)}, does not show "
        f"in your profile. The cheapest way in: {known.skills[skill].learn}."
        for skill, times in missing.most_common(_MOST_GAPS)
    ]
    for skill, words in reading.experience.denied.items():
        quoted = listing([f"“{word}”" for word in words[:2]])
        points.append(
            f"**{capital(known.skills[skill].name)}** you say you lack ({quoted}). Ideas that rest "
            "on it lose points for that; borrow it from a partner or leave it out."
        )
    points += [
        f"**{fit.idea.name}** goes beyond your limits. {'. '.join(fit.shortfalls)}."
        for fit in best
        if not fit.is_within_limits
    ]
    if not points:
        points.append(
            "The first three ideas ask for no skill that you have not shown. What remains unknown "
            "is whether their customers want it from you: only asking them closes that gap."
        )
    return bullets(points)


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
            "Put your hours into the calendar now, in blocks of at least an hour, and give one "
            "block in three to finding customers."
        )
    else:
        advice.append("Fix working hours and one free day now; an open week fills with building.")
    missing = next(
        (skill for skill in idea.skills if skill not in reading.shown_skills),
        None,
    )
    if missing is not None:
        skill = catalogue().skills[missing]
        advice.append(f"Close one gap only, {skill.name}. To begin, {skill.learn}.")
    weeks = first_payment_weeks(idea, pace(idea, reading.hours))[1]
    advice.append(
        f"Decide today when you stop: if nobody has paid {weeks} weeks after you began in "
        f"earnest, go on to “{second.idea.name}” instead of improving the first."
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
        questions.append("Which skills lie behind your experience? I could not tell them from it.")
    questions += _interest_questions(assessment)
    if not reading.skills:
        questions.append("What do others say that you are good at?")
    questions.append(f"Whom do you already know among {idea.customer}?")
    return bullets(questions)


def _interest_questions(assessment: Assessment) -> list[str]:
    reading = assessment.reading
    if not reading.topics:
        return []
    near = {*reading.areas, *reading.related_areas}
    if near and reading.topic_areas and reading.topic_areas.isdisjoint(near):
        return [
            f"You name “{reading.said['sub_interest_area']}” within {listing(reading.areas)}; I "
            f"know it from {listing(sorted(reading.topic_areas))}. Do you want to join the two, or "
            "which of them comes first?"
        ]
    if not reading.topic_areas:
        return [
            f"What exactly draws you to “{reading.said['sub_interest_area']}”? The catalogue has "
            "no idea about it, so it could not count."
        ]
    return []
