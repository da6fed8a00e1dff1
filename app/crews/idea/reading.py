"""What a profile means in the catalogue's terms."""

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
from app.crews.idea.words import fold, phrases, told_and_denied

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
    """What the experience summary tells: skill ids with the person's words for them."""

    told: bool
    shown: Mapping[str, tuple[str, ...]]
    denied: Mapping[str, tuple[str, ...]]
    phrases: Mapping[str, str]
    most_years: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A profile and what could be made of it; None or empty where a field could not be read.

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
    place: str | None


def read(profile: Profile) -> Reading:
    """Read every field of `profile`."""
    areas = tuple(_matches(phrases(profile.interest_area), _area_index()))
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
        topic_areas=frozenset(_matches(topics, _topic_index())),
        skills=tuple(_matches(phrases(profile.skill_strength), _index("skills"))),
        experience=_experience(profile.experience_summary),
        goal=_best(profile.goal_type, _index("goals")),
        company=_best(profile.work_style, _index("work_styles", "solo", "partner", "team")),
        place=_best(profile.work_style, _index("work_styles", "remote", "in-person")),
    )


class _Worded(Protocol):
    @property
    def words(self) -> tuple[str, ...]: ...


@cache
def _index(group: str, *names: str) -> Mapping[str, tuple[str, ...]]:
    members: Mapping[str, _Worded] = getattr(catalogue(), group)
    return _by_phrase((name, members[name]) for name in names or members)


@cache
def _area_index() -> Mapping[str, tuple[str, ...]]:
    return _by_phrase((area.name, area) for area in catalogue().areas)


@cache
def _topic_index() -> Mapping[str, tuple[str, ...]]:
    index: dict[str, tuple[str, ...]] = {}
    for area, idea in catalogue().ideas():
        for topic in fold(idea.topics):
            index[topic] = (*index.get(topic, ()), area.name)
    return index


def _by_phrase(members: Iterable[tuple[str, _Worded]]) -> Mapping[str, tuple[str, ...]]:
    index: dict[str, tuple[str, ...]] = {}
    for name, member in members:
        for phrase in fold(member.words):
            index[phrase] = (*index.get(phrase, ()), name)
    return index


def _matches(
    found: Mapping[str, str], index: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return what `found` hints at, strongest first, each with the words that hinted."""
    hints: dict[str, list[str]] = {}
    for folded, written in found.items():
        for name in index.get(folded, ()):
            hints.setdefault(name, []).append(written)
    ordered = sorted(hints.items(), key=lambda hint: -len(hint[1]))
    return {name: tuple(written) for name, written in ordered}


def _best(text: str, index: Mapping[str, tuple[str, ...]]) -> str | None:
    return next(iter(_matches(phrases(text), index)), None)


def _is_open(text: str) -> bool:
    return _OPEN.search(text) is not None


def _topics(text: str) -> Mapping[str, str]:
    found = phrases(text)
    if _is_open(text):
        return {}
    telling = {folded: word for folded, word in found.items() if not _COLOURLESS.fullmatch(folded)}
    return telling or found


def _experience(text: str) -> Experience:
    if text.strip() in ("", NO_EXPERIENCE):
        return Experience(told=False, shown={}, denied={}, phrases={}, most_years=0)
    told, denied = told_and_denied(text)
    shown = _matches(told, _index("skills"))
    lacking = _matches(denied, _index("skills"))
    return Experience(
        told=True,
        shown=shown,
        denied={skill: words for skill, words in lacking.items() if skill not in shown},
        phrases=told,
        most_years=max((int(years) for years in _YEARS.findall(text)), default=0),
    )
