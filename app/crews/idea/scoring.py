"""Scores each idea of the catalogue for a profile, in points with their reasons."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final, NamedTuple

from app.crews.idea.catalogue import Area, Idea, catalogue
from app.crews.idea.profile import Profile
from app.crews.idea.reading import Reading, read
from app.crews.idea.wording import listing, number, number_range, usd, usd_range
from app.crews.idea.words import fold

_HOURS: Final = "Hours per week"
_BUDGET: Final = "Budget"


class Score(NamedTuple):
    """Points for one criterion and why. Needing more than the person has costs points."""

    criterion: str
    most_points: int
    points: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fit:
    """One idea, scored for one profile. A limit that could not be read is not exceeded."""

    area: Area
    idea: Idea
    scores: tuple[Score, ...]
    total: int
    is_within_hours: bool
    is_within_budget: bool

    @property
    def is_within_limits(self) -> bool:
        """Whether the least it needs of hours and money is inside what the person has."""
        return self.is_within_hours and self.is_within_budget

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """For each limit that it exceeds, by how much; in words."""
        exceeded = {_HOURS: not self.is_within_hours, _BUDGET: not self.is_within_budget}
        return tuple(score.reason for score in self.scores if exceeded.get(score.criterion))


@dataclass(frozen=True, slots=True)
class Assessment:
    """A profile, what it means, and all ideas from the best fit to the worst.

    Equal totals put the cheaper start first, then the quicker first payment, then keep the
    catalogue's order.
    """

    reading: Reading
    fits: tuple[Fit, ...]


@lru_cache(maxsize=256)  # three reports are written about each profile
def assess(profile: Profile) -> Assessment:
    """Score and rank all ideas of the catalogue for `profile`."""
    reading = read(profile)
    fits = [_fit(candidate, reading) for candidate in _candidates()]
    fits.sort(
        key=lambda fit: (
            -fit.total,
            fit.idea.startup_cost_usd[0],
            fit.idea.first_revenue_weeks[1],
        )
    )
    return Assessment(reading, tuple(fits))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An idea, and its words folded for comparison."""

    area: Area
    idea: Idea
    topics: frozenset[str]
    topic_words: frozenset[str]
    background: frozenset[str]
    area_words: frozenset[str]


@cache
def _candidates() -> tuple[_Candidate, ...]:
    return tuple(
        _Candidate(
            area=area,
            idea=idea,
            topics=fold(idea.topics),
            topic_words=frozenset(word for topic in fold(idea.topics) for word in topic.split()),
            background=fold(idea.background),
            area_words=fold(area.words),
        )
        for area, idea in catalogue().ideas()
    )


def _fit(candidate: _Candidate, reading: Reading) -> Fit:
    scores = [
        Score(criterion, most_points, *judge(candidate, reading))
        for criterion, most_points, judge in _CRITERIA
    ]
    idea = candidate.idea
    return Fit(
        area=candidate.area,
        idea=idea,
        scores=tuple(scores),
        total=sum([score.points for score in scores]),
        is_within_hours=reading.hours is None or reading.hours.allows(idea.hours_per_week[0]),
        is_within_budget=reading.budget is None or reading.budget.allows(idea.startup_cost_usd[0]),
    )


def _interest(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    if candidate.area.name in reading.areas:
        return 20, f"The area you name is {candidate.area.name}"
    if candidate.area.name in reading.related_areas:
        return 8, f"Its area, {candidate.area.name}, is next to {listing(reading.areas)}"
    if reading.areas:
        return 0, f"Its area, {candidate.area.name}, is another than you name"
    if reading.is_area_open:
        return 10, "You leave the area open"
    return 0, f"The catalogue has no area for “{reading.said['interest_area']}”"


def _sub_interest(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    said = reading.said["sub_interest_area"]
    if not reading.topics:
        return 5, "You leave the sub-interest open"
    near = {*reading.areas, *reading.related_areas}
    if not near or candidate.area.name in near:
        if not candidate.topics.isdisjoint(reading.topics):
            return 10, f"It is about “{said}”"
        if not candidate.topic_words.isdisjoint(reading.topics):
            return 5, f"It touches “{said}”"
    return 0, f"It is not about “{said}”"


def _hours(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    low, high = candidate.idea.hours_per_week
    said, hours = reading.said["time_commitment"], reading.hours
    if hours is None:
        return 10, f"“{said}” does not tell a number of hours, so this counts as neutral"
    if hours.low > 2 * high:
        return (
            max(6, round(40 * high / hours.low)),
            f"Takes {number(high)} hrs/week at most and leaves much of your time unused",
        )
    if hours.allows(high):
        return 20, f"{number_range((low, high))} hrs/week fits into your “{said}”"
    if hours.allows(low):
        share = (hours.high - low) / (high - low)
        return (
            12 + round(6 * share),
            f"Works from {number(low)} hrs/week, but {number(high)} would be comfortable: "
            f"slower at your “{said}”",
        )
    excess = low / max(hours.high, 1) - 1
    return (
        max(-20, round(6 - 26 * excess)),
        f"Needs about {number(low)} hrs/week, above your “{said}”",
    )


def _budget(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    low, high = candidate.idea.startup_cost_usd
    said, budget = reading.said["budget_range"], reading.budget
    if budget is None:
        return 8, f"“{said}” does not tell a sum in dollars, so this counts as neutral"
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


def _skills(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    core, *others = candidate.idea.skills
    if not reading.skills:
        said = reading.said["skill_strength"]
        return 4, f"“{said}” is no skill that the catalogue knows, so this counts as neutral"
    if core in reading.skills:
        return 10, f"It rests on {_skill(core)}, your strength"
    helpful = [skill for skill in others if skill in reading.skills]
    if helpful:
        return 6, f"It rests on {_skill(core)}; your strength, {_skill(helpful[0])}, helps"
    return 0, f"It rests on {_skill(core)}, not on what you name"


def _experience(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    experience = reading.experience
    if not experience.is_given:
        return 3, "You tell nothing of your experience, so this counts as neutral"
    core, *others = candidate.idea.skills
    if core in experience.denied:
        return -6, f"It rests on {_skill(core)}, and you say that you lack that"
    points, evidence = 0, []
    if core in experience.shown:
        points, evidence = 3, [experience.shown[core][0]]
    for skill in others:
        if skill in experience.shown:
            points += 2
            evidence.append(experience.shown[skill][0])
            break
    for familiar, worth in ((candidate.background, 3), (candidate.area_words, 2)):
        if known := experience.phrases & familiar:
            points += worth
            evidence.append(experience.written[min(known)])
    if not evidence:
        return 0, "Nothing in your experience bears on it"
    return points, f"You bring {listing([f'“{word}”' for word in dict.fromkeys(evidence)])}"


def _work_style(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    preferred = [style for style in (reading.company, reading.location) if style]
    if not preferred:
        said = reading.said["work_style"]
        return 3, f"“{said}” does not tell with whom or where, so this counts as neutral"
    missing = [style for style in preferred if style not in candidate.idea.styles]
    points = 5 * (len(preferred) - len(missing)) // len(preferred)
    if missing:
        return points, f"It is hard to do {_styles(missing)}"
    return points, f"It can be done {_styles(preferred)}"


def _goal(candidate: _Candidate, reading: Reading) -> tuple[int, str]:
    if reading.goal is None:
        said = reading.said["goal_type"]
        return 5, f"“{said}” is no goal that the catalogue knows, so this counts as neutral"
    goal = catalogue().goals[reading.goal].name
    if reading.goal == candidate.idea.goals[0]:
        return 10, f"It is made for {goal}"
    if reading.goal in candidate.idea.goals:
        return 8, f"It suits {goal}"
    return 0, f"It is not made for {goal}"


def _styles(names: list[str]) -> str:
    return listing([catalogue().work_styles[name].name for name in names])


def _skill(name: str) -> str:
    return catalogue().skills[name].name


_Judge = Callable[[_Candidate, Reading], tuple[int, str]]

_CRITERIA: Final[tuple[tuple[str, int, _Judge], ...]] = (
    ("Interest area", 20, _interest),
    ("Sub-interest", 10, _sub_interest),
    (_HOURS, 20, _hours),
    (_BUDGET, 15, _budget),
    ("Skills", 10, _skills),
    ("Experience", 10, _experience),
    ("Work style", 5, _work_style),
    ("Goal", 10, _goal),
)
