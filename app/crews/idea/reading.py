"""The interpretation of a profile in the catalogue's terms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from app.crews.idea.amounts import Amount, read_budget, read_hours
from app.crews.idea.catalogue import Area, Idea, catalogue
from app.crews.idea.markdown import quote
from app.crews.idea.profile import DEFAULTS, Profile
from app.crews.idea.subjects import Match, Subject, meaning, subjects
from app.crews.idea.words import claimed_and_denied, fold, phrases

_OPEN = re.compile(
    r"\b(?:any|anything|everything|all|open|unsure|not sure|(?:i )?don['’]?t know|undecided"
    r"|whatever|none|n/a|no preference|flexible|various|other|yet|fine|to)\b",
    re.IGNORECASE,
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

    `said` holds the fields as written, safe to quote within a sentence of markdown; a field that
    the person left empty is empty. `areas` are those that the interest names. If it names none,
    `nearest_areas` are the nearest to it, or share a word with it. `interest` and `topics` are the
    subjects of the interest and of the sub-interest, `topic_areas` the areas that have ideas about
    the topics.
    """

    profile: Profile
    said: Mapping[str, str]
    hours: Amount | None
    budget: Amount | None
    interest: tuple[Subject, ...]
    areas: tuple[str, ...]
    nearest_areas: tuple[str, ...]
    related_areas: frozenset[str]
    is_area_open: bool
    topics: tuple[Subject, ...]
    topic_areas: tuple[str, ...]
    skills: tuple[str, ...]
    experience: Experience
    goal: str | None
    company: str | None
    location: str | None

    @property
    def near_areas(self) -> frozenset[str]:
        """The areas that the interest allows; empty if it allows any."""
        return frozenset((*self.areas, *self.nearest_areas, *self.related_areas))

    @property
    def lacks_area(self) -> bool:
        """Whether the person names an interest that no area of the catalogue covers."""
        return bool(self.said["interest_area"]) and not self.areas and not self.is_area_open

    @property
    def shown_skills(self) -> frozenset[str]:
        """The skills that the person names as a strength or shows by experience."""
        shown = {*self.skills, *self.experience.shown}
        return frozenset(shown | {catalogue().skills[skill].kind_of for skill in shown} - {""})

    @property
    def given_fields(self) -> tuple[str, ...]:
        """The names of the fields in which the person wrote something."""
        return tuple(name for name, said in self.said.items() if said)


def read(profile: Profile) -> Reading:
    """Read every field of `profile`."""
    interest = () if _is_open(profile.interest_area) else subjects(profile.interest_area)
    topics = () if _is_open(profile.sub_interest_area) else subjects(profile.sub_interest_area)
    matched = {area.name: _area_match(area, interest) for area in catalogue().areas}
    areas = tuple(name for name, match in matched.items() if match >= Match.PART)
    nearest = () if areas else _nearest_areas(interest) or tuple(filter(matched.get, matched))
    return Reading(
        profile=profile,
        said={name: quote(getattr(profile, name), most_characters=60) for name in DEFAULTS},
        hours=read_hours(profile.time_commitment),
        budget=read_budget(profile.budget_range),
        interest=interest,
        areas=areas,
        nearest_areas=nearest,
        related_areas=frozenset(
            related for area in catalogue().areas if area.name in areas for related in area.related
        ).difference(areas),
        is_area_open=not areas and _is_open(profile.interest_area),
        topics=topics,
        topic_areas=tuple(
            area.name
            for area in catalogue().areas
            if any(match_idea(idea, topics) for idea in area.ideas)
        ),
        skills=tuple(_index("skills").matches(phrases(profile.skill_strength))),
        experience=_experience(profile.experience_summary),
        goal=_index("goals").best(profile.goal_type),
        company=_index("work_styles", "solo", "partner", "team").best(profile.work_style),
        location=_index("work_styles", "remote", "in-person").best(profile.work_style),
    )


def match_idea(idea: Idea, named: Iterable[Subject]) -> tuple[Match, Subject] | None:
    """Return the closest match of `idea` with one of the subjects; None if none is about it."""
    terms, supporting = _terms_of(idea.name)
    ignored = meaning().qualifiers | meaning().broad
    matches = [
        (
            Match.EXACT
            if _names_idea(subject, idea.name)
            else subject.match(terms, supporting, ignored=ignored),
            subject,
        )
        for subject in named
    ]
    best = max(matches, key=lambda found: found[0], default=None)
    return best if best is not None and best[0] else None


def _names_idea(subject: Subject, name: str) -> bool:
    """Whether a subject of several words is the name of an idea, or the main part of it."""
    return len(subject.words) > 1 and any(
        subject.words <= named.words and subject.activity == named.activity
        for named in subjects(name)
    )


@cache
def _terms_of(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The folded topics of an idea, and the words that may confirm details of a subject."""
    idea = next(idea for _, idea in catalogue().ideas() if idea.name == name)
    topics = fold(idea.topics)
    words_of_topics = {word for topic in topics for word in topic.split()}
    return topics, frozenset(words_of_topics | set(phrases(idea.customer)))


def _nearest_areas(interest: Iterable[Subject]) -> tuple[str, ...]:
    """The areas that the catalogue names as the nearest to the interest."""
    words = {word for subject in interest for word in subject.words}
    return tuple(area.name for area in catalogue().areas if words & fold(area.nearest_to))


def _area_match(area: Area, interest: Iterable[Subject]) -> Match:
    terms, supporting = _terms_of_area(area.name)
    ignored = meaning().qualifiers
    matches = (subject.match(terms, supporting, ignored=ignored) for subject in interest)
    return max(matches, default=Match.NONE)


@cache
def _terms_of_area(name: str) -> tuple[frozenset[str], frozenset[str]]:
    area = next(area for area in catalogue().areas if area.name == name)
    return fold(area.words), frozenset().union(*(_terms_of(idea.name)[1] for idea in area.ideas))


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
    """Whether `text` says that anything is welcome, and nothing else."""
    return _OPEN.search(text) is not None and not subjects(_OPEN.sub(" ", text))


def _experience(text: str) -> Experience:
    if not text.strip() or _is_open(text):
        return Experience(
            is_given=False, shown={}, denied={}, phrases=frozenset(), written={}, most_years=0
        )
    claimed, denied = map(_without_vague, claimed_and_denied(text))
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


def _without_vague(found: Mapping[str, str]) -> dict[str, str]:
    vague = meaning().vague
    return {folded: written for folded, written in found.items() if folded not in vague}
