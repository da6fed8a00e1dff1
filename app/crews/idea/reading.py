"""The interpretation of a profile in the catalogue's terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from app.crews.idea.amounts import Amount, read_budget, read_hours
from app.crews.idea.catalogue import catalogue
from app.crews.idea.markdown import quote
from app.crews.idea.profile import DEFAULTS, NO_EXPERIENCE, Profile
from app.crews.idea.words import claimed_and_denied, fold, phrases

_OPEN = re.compile(
    r"\b(?:any|anything|everything|all|open|unsure|not sure|don['’]?t know|undecided|whatever"
    r"|none|n/a|no preference|flexible|various|other)\b",
    re.IGNORECASE,
)
_COLOURLESS = re.compile(
    r"an?|and|or|the|of|for|in|on|to|with|my|at|by|from|new|other|general|small|local|online"
    r"|digital|service|business|product|idea|company|startup|stuff"
)
_YEARS = re.compile(r"\b([0-9]{1,2})\+?\s*(?:years?|yrs?)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Experience:
    """The content of the experience summary.

    `shown` and `denied` are skills with the person's words for them; `phrases` is everything that
    is claimed, folded, and `written` how the person wrote it.
    """

    is_given: bool
    shown: Mapping[str, tuple[str, ...]]
    denied: Mapping[str, tuple[str, ...]]
    phrases: frozenset[str]
    written: Mapping[str, str]
    most_years: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A profile and its interpretation; None or empty if a field could not be read.

    `said` holds the fields as written, safe to quote within a sentence of markdown. `topics` are
    the words of the sub-interest, `topic_areas` the areas that have ideas about them.
    """

    profile: Profile
    said: Mapping[str, str]
    hours: Amount | None
    budget: Amount | None
    areas: tuple[str, ...]
    related_areas: frozenset[str]
    is_area_open: bool
    topics: Mapping[str, str]
    topic_areas: frozenset[str]
    skills: tuple[str, ...]
    experience: Experience
    goal: str | None
    company: str | None
    location: str | None

    @property
    def shown_skills(self) -> frozenset[str]:
        """The skills that the person names as a strength or shows by experience."""
        return frozenset((*self.skills, *self.experience.shown))


def read(profile: Profile) -> Reading:
    """Read every field of `profile`."""
    areas = tuple(_area_index().matches(phrases(profile.interest_area)))
    topics = _topics(profile.sub_interest_area)
    return Reading(
        profile=profile,
        said={name: quote(getattr(profile, name), most_characters=60) for name in DEFAULTS},
        hours=read_hours(profile.time_commitment),
        budget=read_budget(profile.budget_range),
        areas=areas,
        related_areas=frozenset(
            related for area in catalogue().areas if area.name in areas for related in area.related
        ).difference(areas),
        is_area_open=not areas and _is_open(profile.interest_area),
        topics=topics,
        topic_areas=frozenset(_topic_index().matches(topics)),
        skills=tuple(_index("skills").matches(phrases(profile.skill_strength))),
        experience=_experience(profile.experience_summary),
        goal=_index("goals").best(profile.goal_type),
        company=_index("work_styles", "solo", "partner", "team").best(profile.work_style),
        location=_index("work_styles", "remote", "in-person").best(profile.work_style),
    )


class _Worded(Protocol):
    @property
    def words(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class _Index:
    """The members of a catalogue group that a phrase indicates, in the file's order."""

    members: tuple[str, ...]
    by_phrase: Mapping[str, tuple[str, ...]]

    def matches(self, found: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
        """Return the members that `found` hints at, strongest first, with the hinting words."""
        hints: dict[str, list[str]] = {name: [] for name in self.members}
        strength = dict.fromkeys(self.members, 0)
        for folded, written in found.items():
            for name in self.by_phrase.get(folded, ()):
                hints[name].append(written)
                strength[name] += 1 + folded.count(" ")  # two words together say more
        ordered = sorted(filter(hints.get, hints), key=lambda name: -strength[name])
        return {name: tuple(hints[name]) for name in ordered}

    def best(self, text: str) -> str | None:
        """Return the member that `text` hints at most strongly; among equals the first."""
        return next(iter(self.matches(phrases(text))), None)


@cache
def _index(group: str, *names: str) -> _Index:
    members: Mapping[str, _Worded] = getattr(catalogue(), group)
    return _build_index((name, members[name].words) for name in names or members)


@cache
def _area_index() -> _Index:
    return _build_index((area.name, area.words) for area in catalogue().areas)


@cache
def _topic_index() -> _Index:
    return _build_index((area.name, idea.topics) for area, idea in catalogue().ideas())


def _build_index(worded: Iterable[tuple[str, Iterable[str]]]) -> _Index:
    members: dict[str, None] = {}
    by_phrase: dict[str, tuple[str, ...]] = {}
    for name, words in worded:
        members[name] = None
        for phrase in fold(words):
            if name not in by_phrase.get(phrase, ()):
                by_phrase[phrase] = (*by_phrase.get(phrase, ()), name)
    return _Index(tuple(members), by_phrase)


def _is_open(text: str) -> bool:
    return _OPEN.search(text) is not None


def _topics(text: str) -> Mapping[str, str]:
    found = phrases(text)
    if _is_open(text):
        return {}
    distinctive = {
        folded: word for folded, word in found.items() if not _COLOURLESS.fullmatch(folded)
    }
    return distinctive or found


def _experience(text: str) -> Experience:
    if text.strip() in ("", NO_EXPERIENCE):
        return Experience(
            is_given=False, shown={}, denied={}, phrases=frozenset(), written={}, most_years=0
        )
    claimed, denied = claimed_and_denied(text)
    shown = _index("skills").matches(claimed)
    lacking = _index("skills").matches(denied)
    return Experience(
        is_given=True,
        shown=shown,
        denied={skill: words for skill, words in lacking.items() if skill not in shown},
        phrases=frozenset(claimed),
        written=claimed,
        most_years=max((int(years) for years in _YEARS.findall(text)), default=0),
    )
