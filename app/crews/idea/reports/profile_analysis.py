"""What the person wants, has and lacks, and what follows from it."""

from __future__ import annotations

from collections import Counter
from math import inf

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import catalogue
from app.crews.idea.markdown import bullets, numbered, quote, table
from app.crews.idea.reports.note import note
from app.crews.idea.scoring import Assessment, Fit
from app.crews.idea.wording import (
    budget_in_words,
    capital,
    count,
    hours_in_words,
    listing,
    number,
    usd,
)

_FULL_WEEK_HOURS = 30


def write(assessment: Assessment) -> str:
    """Return the report on `assessment`'s profile."""
    sections = (
        ("Motivation", _motivation),
        ("Constraints", _constraints),
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
    styles = [known.work_styles[style].name for style in (reading.company, reading.place) if style]
    skills = [known.skills[skill].name for skill in reading.skills]
    shown = [known.skills[skill].name for skill in reading.experience.shown]
    untold = "no skill that I know" if reading.experience.told else "not told"
    meanings = {
        "goal_type": ("Goal", goal),
        "time_commitment": ("Time", hours),
        "budget_range": ("Budget", budget),
        "interest_area": ("Interest", areas),
        "sub_interest_area": ("Sub-interest", topics),
        "work_style": ("Work style", listing(styles) or "no preference: neutral"),
        "skill_strength": ("Strength", listing(skills) or "no skill that I know: neutral"),
        "experience_summary": ("Experience", listing(shown) or untold),
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
    if reading.goal == "full-income" and hours is not None and hours.high < _FULL_WEEK_HOURS:
        feasible = [fit for fit in assessment.fits if fit.is_within_limits]
        most = max((fit.idea.monthly_earnings_usd[1] for fit in feasible), default=0)
        lines.append(
            f"Be warned: {hours_in_words(hours)} is little for that. Among the ideas within your "
            f"limits the highest planning range ends at {usd(most)} a month, before tax and costs, "
            "and at a pace that you may not have. Treat the first year as the proof, and plan how "
            "your hours would grow if it succeeds."
        )
    return "\n\n".join(lines)


def _constraints(assessment: Assessment) -> str:
    reading, fits = assessment.reading, assessment.fits
    points = [_time(assessment), _money(assessment), _style(assessment)]
    within = [fit for fit in fits if fit.is_within_limits]
    near = [fit for fit in within if fit.area.name in reading.areas]
    last = f"**Together:** {count(len(within), 'idea')} of {len(fits)} pass both limits"
    if reading.areas:
        last += f", {len(near) or 'none'} of them in {listing(reading.areas)}"
    points.append(f"{last}.")
    return bullets(points)


def _time(assessment: Assessment) -> str:
    hours, fits = assessment.reading.hours, assessment.fits
    if hours is None:
        return (
            f"**Time:** “{assessment.reading.said['time_commitment']}” does not tell a number of "
            "hours a week, so no idea gained or lost much by it. Check the hours of each idea "
            "yourself."
        )
    start = sum(fit.is_within_hours for fit in fits)
    comfortable = sum(hours.allows(fit.idea.hours_per_week[1]) for fit in fits)
    return " ".join(
        filter(
            None,
            (
                f"**Time:** {hours_in_words(hours)}.",
                hours.note,
                f"Of {len(fits)} ideas in the catalogue, {start} can start with that and "
                f"{comfortable} would be comfortable.",
                _time_advice(hours),
            ),
        )
    )


def _time_advice(hours: Amount) -> str:
    if hours.high <= 5:
        return (
            "That carries one idea, one kind of customer and one way to reach them. Prefer work "
            "that can be done in pieces of an hour, and nothing that ties you to a time of day."
        )
    if hours.high <= 10:
        return (
            "That carries one idea with two fixed blocks a week: one for finding customers, one "
            "for serving them. Delivery tends to eat both, so cap the number of customers."
        )
    if hours.high < _FULL_WEEK_HOURS:
        return (
            "That is enough to reach first payments within a quarter, if at least a third of it "
            "goes into finding customers from the first week."
        )
    return (
        "That is a working week. The danger is to spend it on building; until ten customers have "
        "paid, spend half of it where customers are."
    )


def _money(assessment: Assessment) -> str:
    budget, fits = assessment.reading.budget, assessment.fits
    if budget is None:
        return (
            f"**Money:** “{assessment.reading.said['budget_range']}” does not tell a sum in US "
            "dollars, so the budget counts as neutral. Compare each idea's start-up cost yourself."
        )
    start = sum(fit.is_within_budget for fit in fits)
    return " ".join(
        filter(
            None,
            (
                f"**Money:** {budget_in_words(budget)}.",
                budget.note,
                f"{start} of {len(fits)} ideas can begin within that.",
                _money_advice(budget),
            ),
        )
    )


def _money_advice(budget: Amount) -> str:
    if not budget.high:
        return (
            "Use free plans, do the first delivery by hand, and let the first customer's payment "
            "buy the first tool. Your time is the stake, so guard it as you would money."
        )
    if budget.high == inf:
        return (
            "Money that is no obstacle tempts people to build before anybody has asked. Set a sum "
            "for the first test and stop when it is spent."
        )
    if budget.high <= 300:
        return (
            "Spend it on reaching customers and on materials for the first deliveries, not on a "
            "logo, a company or yearly plans."
        )
    return (
        f"Spend it in five steps of about {usd(budget.high / 5)}, each only after the last one has "
        "shown what it should."
    )


def _style(assessment: Assessment) -> str:
    reading, known = assessment.reading, catalogue()
    styles = [known.work_styles[style].name for style in (reading.company, reading.place) if style]
    if not styles:
        return (
            f"**Way of working:** “{reading.said['work_style']}” tells neither with whom nor where "
            "you like to work, so it counts as neutral."
        )
    advice = {
        "solo": (
            "Nobody notices when you stall, so tell one person each Friday what you did, and avoid "
            "promises that need you when you are ill."
        ),
        "partner": "Write down now who decides what, and what happens when one of you stops.",
        "team": (
            "A team costs money or shares before it earns; begin with people who take part for the "
            "first test only."
        ),
        "remote": "Customers come by what they find and read about you, so be findable early.",
        "in-person": "Count travel as working hours and stay within half an hour of home.",
    }
    chosen = reading.company or reading.place or ""
    return f"**Way of working:** {listing(styles)}. {advice[chosen]}"


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
            told = listing([f"“{word}”" for word in words[:3]])
            points.append(
                f"**{capital(known.skills[skill].name)}**, from your experience ({told}): "
                f"{known.skills[skill].use}."
            )
    if reading.experience.most_years:
        points.append(
            f"**{count(reading.experience.most_years, 'year')}** in one thing: you know who pays "
            "in that field and what annoys them. Ask former colleagues and customers first."
        )
    if reading.experience.told:
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
    needed = Counter(skill for fit in best for skill in fit.idea.skills)
    have = {*reading.skills, *reading.experience.shown}
    points = [
        f"**{capital(known.skills[skill].name)}** is asked for by {count(times, 'idea')} of your "
        f"first three and not shown in your profile. The cheapest way in: "
        f"{known.skills[skill].learn}."
        for skill, times in needed.most_common()
        if skill not in have
    ]
    for skill, words in reading.experience.denied.items():
        told = listing([f"“{word}”" for word in words[:2]])
        points.append(
            f"You say that you lack {known.skills[skill].name} ({told}). Ideas that rest on it "
            "lose points for that; borrow it from a partner or leave it out."
        )
    points += [
        f"**{fit.idea.name}:** {'. '.join(fit.shortfalls)}."
        for fit in best
        if not fit.is_within_limits
    ]
    if not points:
        points.append(
            "The first three ideas ask for nothing that you have not told me. What remains unknown "
            "is whether their customers want it from you: only asking them closes that gap."
        )
    return bullets(points)


def _advice(assessment: Assessment) -> str:
    reading, best, second = assessment.reading, assessment.fits[0], assessment.fits[1]
    idea = best.idea
    advice = [
        f"Begin with people, not with tools: talk to five {idea.customer} before you build "
        f"anything for “{idea.name}”.",
        f"Then run the first test: {idea.experiments[0].do}. It has passed if "
        f"{idea.experiments[0].pass_if}.",
    ]
    if reading.hours is not None and reading.hours.high < _FULL_WEEK_HOURS:
        advice.append(
            "Put your hours into the calendar now, in blocks of at least an hour, and give one "
            "block in three to finding customers."
        )
    else:
        advice.append("Fix working hours and one free day now; an open week fills with building.")
    missing = next(
        (
            skill
            for skill in idea.skills
            if skill not in reading.skills and skill not in reading.experience.shown
        ),
        None,
    )
    if missing is not None:
        skill = catalogue().skills[missing]
        advice.append(f"Close one gap only, {skill.name}: {skill.learn}.")
    weeks = idea.first_revenue_weeks[1]
    advice.append(
        f"Decide today when you stop: if nobody has paid {number(weeks)} weeks after you began in "
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
    if not reading.experience.told:
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
