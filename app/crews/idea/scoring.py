"""Scores each idea of the catalogue for a profile, in points with their reasons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from app.crews.idea.catalogue import Area, Idea, catalogue
from app.crews.idea.criteria import BUDGET, CRITERIA, HOURS, SUB_INTEREST, Candidate, Criterion
from app.crews.idea.profile import Profile
from app.crews.idea.reading import Reading, match_idea, read
from app.crews.idea.schedule import Plan, plan_for
from app.crews.idea.subjects import Match, Subject
from app.crews.idea.words import fold, phrases


class Score(NamedTuple):
    """Points for one criterion and why. Needing more than the person has costs points.

    `is_given` says that the person wrote something in the criterion's field.
    """

    criterion: str
    most_points: int
    points: int
    reason: str
    is_given: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """One idea, scored for one profile. An unknown limit is not exceeded.

    `match` is its closest match with the topics of the person.
    """

    area: Area
    idea: Idea
    reading: Reading
    scores: tuple[Score, ...]
    total: int
    match: Match
    is_within_hours: bool
    is_within_budget: bool

    @property
    def plan(self) -> Plan:
        """The dates and sums of the idea for the person."""
        return plan_for(self.idea, self.reading.hours, self.reading.budget)

    @property
    def is_within_limits(self) -> bool:
        """Whether the least it needs of hours and money is inside what the person has."""
        return self.is_within_hours and self.is_within_budget

    def score(self, criterion: str) -> Score:
        """The score for one criterion."""
        return next(score for score in self.scores if score.criterion == criterion)

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """For each limit that it exceeds, by how much; in words."""
        exceeded = {HOURS: not self.is_within_hours, BUDGET: not self.is_within_budget}
        return tuple(score.reason for score in self.scores if exceeded.get(score.criterion))


@dataclass(frozen=True, slots=True)
class Assessment:
    """A profile, what it means, and all ideas from the best fit to the worst.

    Equal totals put the cheaper start first, then the quicker first payment, then keep the
    catalogue's order. `unmet_wishes` are the interests that the person names and that no idea
    is exactly about, safe to quote.
    """

    reading: Reading
    fits: tuple[Fit, ...]
    unmet_wishes: tuple[str, ...]


@lru_cache(maxsize=256)  # three reports are written about each profile
def assess(profile: Profile) -> Assessment:
    """Score and rank all ideas of the catalogue for `profile`."""
    reading = read(profile)
    candidates = _candidates(reading)
    fits = [_fit(candidate, reading) for candidate in candidates]
    fits.sort(
        key=lambda fit: (
            -fit.total,
            fit.idea.startup_cost_usd[0],
            fit.idea.first_revenue_weeks[1],
        )
    )
    return Assessment(reading, tuple(fits), _unmet_wishes(candidates, reading))


def _candidates(reading: Reading) -> list[Candidate]:
    named = reading.topics or reading.interest
    allowed = reading.near_areas if reading.topics else frozenset(reading.areas)
    matches = {
        idea.name: match_idea(idea, named)
        for area, idea in catalogue().ideas()
        if (not allowed or area.name in allowed)
        and (reading.topics or not _names_area(area, named))
    }
    closest = max((found[0] for found in matches.values() if found), default=Match.NONE)
    interesting = _ideas_of_interest(reading)
    return [
        Candidate(
            area=area,
            idea=idea,
            match=found[0] if (found := matches.get(idea.name)) else Match.NONE,
            subject=found[1] if found else None,
            closest=closest,
            is_interest=not interesting
            or idea.name in interesting
            or (found is not None and found[0] >= Match.PART),
        )
        for area, idea in catalogue().ideas()
    ]


def _ideas_of_interest(reading: Reading) -> frozenset[str]:
    """Return the ideas that are about the interest itself; none if it names a whole area."""
    known = [area for area in catalogue().areas if area.name in reading.areas]
    if any(_names_area(area, reading.interest) for area in known):
        return frozenset()
    matches = {
        idea.name: match_idea(idea, reading.interest) for area in known for idea in area.ideas
    }
    return frozenset(name for name, found in matches.items() if found and found[0] >= Match.PART)


def _unmet_wishes(candidates: list[Candidate], reading: Reading) -> tuple[str, ...]:
    is_met = any(candidate.match is Match.EXACT for candidate in candidates)
    said = reading.said
    wishes = []
    if reading.lacks_area and not (is_met and not reading.topics):
        wishes.append(said["interest_area"])
    if reading.topics and not is_met:
        wishes.append(said["sub_interest_area"])
    elif not is_met and reading.areas and not _are_areas(reading):
        wishes.append(said["interest_area"])
    return tuple(wishes)


def _are_areas(reading: Reading) -> bool:
    """Whether the interest names whole areas and nothing within them."""
    words = [fold(area.words) for area in catalogue().areas if area.name in reading.areas]
    return any(
        len(subject.words) == 1 or subject.phrases & known
        for subject in reading.interest
        for known in words
    )


def _names_area(area: Area, named: tuple[Subject, ...]) -> bool:
    """Whether the interest is the area's own name, which says nothing about single ideas."""
    return all(subject.heads <= phrases(area.name).keys() for subject in named)


def _fit(candidate: Candidate, reading: Reading) -> Fit:
    scores = [_score(criterion, candidate, reading) for criterion in CRITERIA]
    idea = candidate.idea
    return Fit(
        area=candidate.area,
        idea=idea,
        reading=reading,
        scores=tuple(scores),
        total=sum([score.points for score in scores]),
        match=candidate.match,
        is_within_hours=reading.hours is None or reading.hours.allows(idea.hours_per_week[0]),
        is_within_budget=reading.budget is None or reading.budget.allows(idea.startup_cost_usd[0]),
    )


def _score(criterion: Criterion, candidate: Candidate, reading: Reading) -> Score:
    is_given = bool(reading.said[criterion.field])
    if is_given or (candidate.closest is Match.EXACT and criterion.name == SUB_INTEREST):
        points, reason = criterion.judge(candidate, reading)
    else:
        points, reason = criterion.neutral_points, "Not told, so the same for every idea"
    return Score(criterion.name, criterion.most_points, points, reason, is_given)
