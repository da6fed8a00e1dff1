"""The criteria of a score: each judges one idea by one field of the profile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, NamedTuple

from app.crews.idea.amounts import Amount
from app.crews.idea.catalogue import Area, Idea, catalogue
from app.crews.idea.markdown import quote
from app.crews.idea.reading import Reading
from app.crews.idea.schedule import MONTHS, plan_for
from app.crews.idea.subjects import Match, Subject
from app.crews.idea.wording import listing, number, number_range, usd, usd_range
from app.crews.idea.words import fold

HOURS: Final = "Hours per week"
BUDGET: Final = "Budget"
SUB_INTEREST: Final = "Sub-interest"
_MONEY_GOALS: Final = ("extra-income", "full-income", "passive-income")


@dataclass(frozen=True, slots=True)
class Candidate:
    """An idea and its closest match with the topics of the person.

    `closest` is the closest match that any idea has. `is_interest` says that the idea meets the
    interest or a topic, or that none of the area meets the interest itself.
    """

    area: Area
    idea: Idea
    match: Match
    subject: Subject | None
    closest: Match
    is_interest: bool


def _interest(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    area, said = candidate.area.name, reading.said["interest_area"]
    if area in reading.areas:
        fits = f"Its area, {area}, fits your “{said}”"
        if candidate.is_interest:
            return 20, fits
        return 12, f"{fits}, but other ideas there are closer to it"
    if area in reading.nearest_areas:
        return 12, f"Its area, {area}, is the nearest to “{said}”"
    if area in reading.related_areas:
        return 8, f"Its area, {area}, is close to {listing(reading.areas)}"
    if reading.areas:
        return 0, f"Its area, {area}, is not {listing(reading.areas, last='or')}"
    return (
        (10, "You leave the area open")
        if reading.is_area_open
        else (0, f"It is from another area: {area}")
    )


def _sub_interest(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    match, subject = candidate.match, candidate.subject
    if match is Match.EXACT and subject is not None:
        return 10, f"It is about “{quote(subject.written)}”"
    if not reading.topics:
        if candidate.closest is Match.EXACT:
            return 0, f"It is not exactly about “{reading.said['interest_area']}”"
        return 5, "You leave the sub-interest open"
    said = reading.said["sub_interest_area"]
    if match is Match.PART:
        points = 0 if candidate.closest is Match.EXACT else 7
        return points, f"It is close to “{said}”, but not exactly that"
    if candidate.closest >= Match.PART:
        return -6, f"It is not about “{said}”; another idea is closer"
    return 0, f"It is not about “{said}”"


def _hours(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    low, high = candidate.idea.hours_per_week
    said, hours = reading.said["time_commitment"], reading.hours
    if hours is None:
        return 10, f"“{said}” does not state a number of hours, so this counts as neutral"
    if hours.low > 2 * high:
        return (
            max(6, round(40 * high / hours.low)),
            f"Needs {number(high)} hrs/week at most and leaves much of your time unused",
        )
    if hours.allows(high):
        return 20, f"{number_range((low, high))} hrs/week fits into your “{said}”"
    if hours.allows(low):
        return _slowly(candidate.idea, hours, said)
    excess = low / max(hours.high, 1) - 1
    return (
        max(-20, round(6 - 26 * excess)),
        f"Needs about {number(low)} hrs/week, above your “{said}”",
    )


def _slowly(idea: Idea, hours: Amount, said: str) -> tuple[int, str]:
    low, high = idea.hours_per_week
    points = 12 + round(6 * (hours.high - low) / (high - low))
    reason = (
        f"Works from {number(low)} hrs/week, but {number(high)} would be comfortable: slower at "
        f"your “{said}”"
    )
    if _loses_at(idea.name, hours) and not _loses_at(idea.name, None):
        return points - 3, f"{reason}, and at a loss after {MONTHS} months in the cautious case"
    return points, reason


@lru_cache(maxsize=4096)
def _loses_at(name: str, hours: Amount | None) -> bool:
    """Whether the cautious case of an idea loses money with these hours; None: a good pace."""
    idea = next(idea for _, idea in catalogue().ideas() if idea.name == name)
    return plan_for(idea, hours, None).loses_money


def _budget(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    low, high = candidate.idea.startup_cost_usd
    said, budget = reading.said["budget_range"], reading.budget
    if budget is None:
        return 8, f"“{said}” does not state a sum in dollars, so this counts as neutral"
    if budget.allows(high):
        return 15, f"{usd_range((low, high))} to start is within “{said}”"
    if budget.allows(low):
        share = (budget.high - low) / (high - low)
        return (
            9 + round(5 * share),
            f"Can start with {usd(low)}, within “{said}”; {usd(high)} would make it easier",
        )
    excess = (low - budget.high) / max(budget.high, 100)
    return max(-15, round(4 - 19 * excess)), f"Needs about {usd(low)} to start, above “{said}”"


def _skills(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    core, *others = candidate.idea.skills
    said = reading.said["skill_strength"]
    if not reading.skills:
        return 4, f"“{said}” is no skill that the catalogue knows, so this counts as neutral"
    if core in reading.skills:
        return 10, f"It rests on {_skill(core)}, your strength"
    wider = catalogue().skills[core].kind_of
    if wider in reading.skills:
        return 7, f"It rests on {_skill(core)}, one kind of {_skill(wider)}"
    helpful = [skill for skill in others if skill in reading.skills]
    if helpful:
        return 6, f"It rests on {_skill(core)}; your strength, {_skill(helpful[0])}, helps"
    return 0, f"It rests on {_skill(core)}, which you do not name as a strength"


def _experience(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    experience = reading.experience
    if not experience.is_given:
        return 3, "You leave your experience open, so this counts as neutral"
    core, *others = candidate.idea.skills
    if core in experience.denied:
        return -6, f"It rests on {_skill(core)}, and you say that you lack that"
    points, evidence = 0, []
    if core in experience.shown:
        points, evidence = 4, [experience.shown[core][0]]
    for skill in others:
        if skill in experience.shown:
            points += 2
            evidence.append(experience.shown[skill][0])
            break
    for familiar, worth in ((candidate.idea.background, 4), (candidate.area.words, 1)):
        if known := experience.phrases & _folded(familiar):
            points += worth
            evidence.append(experience.written[max(known, key=_length)])
    reasons = []
    if evidence:
        reasons.append(f"You bring {listing([f'“{word}”' for word in dict.fromkeys(evidence)])}")
    if lacking := [skill for skill in others if skill in experience.denied]:
        points -= 3
        reasons.append(f"It also needs {_skill(lacking[0])}, and you say that you lack that")
    return min(points, 10), ". ".join(reasons) or "Nothing in your experience is close to it"


def _length(phrase: str) -> tuple[int, str]:
    return len(phrase), phrase


@cache
def _folded(words: tuple[str, ...]) -> frozenset[str]:
    return fold(words)


def _work_style(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    preferred = [style for style in (reading.company, reading.location) if style]
    said = reading.said["work_style"]
    if not preferred:
        return 3, f"“{said}” does not state with whom or where, so this counts as neutral"
    missing = [style for style in preferred if style not in candidate.idea.styles]
    points = 5 * (len(preferred) - len(missing)) // len(preferred)
    if missing:
        return points, f"It is hard to do {_styles(missing)}"
    return points, f"It can be done {_styles(preferred)}"


def _goal(candidate: Candidate, reading: Reading) -> tuple[int, str]:
    said = reading.said["goal_type"]
    if reading.goal is None:
        return 5, f"“{said}” is no goal that the catalogue knows, so this counts as neutral"
    goal = catalogue().goals[reading.goal].name
    if reading.goal not in candidate.idea.goals:
        return 0, f"It is not made for {goal}"
    points, verb = (10, "is made for") if reading.goal == candidate.idea.goals[0] else (8, "suits")
    if reading.goal in _MONEY_GOALS and _loses_at(candidate.idea.name, None):
        return points - 6, (
            f"It {verb} {goal}, but its cautious case is at a loss after {MONTHS} months"
        )
    return points, f"It {verb} {goal}"


def _styles(names: list[str]) -> str:
    return listing([catalogue().work_styles[name].name for name in names])


def _skill(name: str) -> str:
    return catalogue().skills[name].name


class Criterion(NamedTuple):
    """A criterion, the field that it reads, and its points if that field is empty."""

    name: str
    field: str
    most_points: int
    neutral_points: int
    judge: Callable[[Candidate, Reading], tuple[int, str]]


CRITERIA: Final = (
    Criterion("Interest area", "interest_area", 20, 10, _interest),
    Criterion(SUB_INTEREST, "sub_interest_area", 10, 5, _sub_interest),
    Criterion(HOURS, "time_commitment", 20, 10, _hours),
    Criterion(BUDGET, "budget_range", 15, 8, _budget),
    Criterion("Skills", "skill_strength", 10, 4, _skills),
    Criterion("Experience", "experience_summary", 10, 3, _experience),
    Criterion("Work style", "work_style", 5, 3, _work_style),
    Criterion("Goal", "goal_type", 10, 5, _goal),
)
