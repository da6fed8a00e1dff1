"""The knowledge of the offline advisor: `catalogue.yaml`, loaded once and validated."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
import yaml

_FILE: Final = Path(__file__).with_name("catalogue.yaml")

_SALE: Final = re.compile(
    r"\b(?:pay|pays|paid|buy|buys|bought|sell|sold|orders?|ordered|pre-orders?|books?|booked|signs?)\b"
)

Range = tuple[int, int]
"""A lower and an upper bound."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frozen, and strict: an unknown or missing key in the file is an error that names it."""


class Meaning(_Record, frozen=True):
    """Words with little meaning of their own; the file says what each list is for."""

    stop: tuple[str, ...]
    generic: tuple[str, ...]
    broad: tuple[str, ...]
    qualifiers: tuple[str, ...]
    vague: tuple[str, ...]


class Skill(_Record, frozen=True):
    """A skill of a person; `kind_of` names the wider skill that it belongs to.

    `use` is its value in a business, and `dislike` a reason not to rely on it, both as clauses
    about "you". `learn` is a first step to learn it, as an imperative.
    """

    name: str
    words: tuple[str, ...]
    use: str
    dislike: str
    learn: str
    kind_of: str = ""


class Goal(_Record, frozen=True):
    """A person's goal for a business. `meaning` and `success` are noun phrases."""

    name: str
    words: tuple[str, ...]
    meaning: str
    success: str


class WorkStyle(_Record, frozen=True):
    """A preference for company or location of work."""

    name: str
    words: tuple[str, ...]


class Risk(_Record, frozen=True):
    """A risk, its early sign, and the response."""

    risk: str
    sign: str
    response: str


class Experiment(_Record, frozen=True):
    """A cheap test: the action, its cost in US dollars, and when it counts as passed."""

    do: str
    cost_usd: int
    pass_if: str

    @property
    def is_sale(self) -> bool:
        """Whether it is passed only by a sale."""
        return _SALE.search(self.pass_if) is not None


class Idea(_Record, frozen=True):
    """One startup idea. The head of the file defines the units and the figures."""

    name: str
    pitch: str
    topics: tuple[str, ...]
    skills: tuple[str, ...]
    background: tuple[str, ...]
    styles: tuple[str, ...]
    goals: tuple[str, ...]
    startup_cost_usd: Range
    running_cost_usd: Range
    hours_per_week: Range
    first_revenue_weeks: Range
    monthly_earnings_usd: Range
    ramp_months: int
    customer: str
    persona: str
    market: str
    revenue: str
    effort: str
    risks: tuple[Risk, ...]
    experiments: tuple[Experiment, ...]
    steps: tuple[str, ...]
    paid_step: int
    questions: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (
            "startup_cost_usd",
            "running_cost_usd",
            "hours_per_week",
            "first_revenue_weeks",
            "monthly_earnings_usd",
        ):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(f"{self.name}: {name} must rise from 0 or more, not {low}-{high}")
        if self.hours_per_week[0] < 1 or self.ramp_months < 1:
            raise ValueError(f"{self.name}: hours_per_week and ramp_months start at 1")
        if not 2 <= self.paid_step <= len(self.steps):
            raise ValueError(f"{self.name}: paid_step must be the number of a step after the first")
        for name in (
            "topics",
            "skills",
            "background",
            "styles",
            "goals",
            "risks",
            "experiments",
            "steps",
            "questions",
        ):
            if not getattr(self, name):
                raise ValueError(f"{self.name}: {name} is empty")


class Area(_Record, frozen=True):
    """An area of interest, the areas next to it, and its ideas.

    `nearest_to` are words of interests that no area covers, and for which this one is the nearest.
    """

    name: str
    words: tuple[str, ...]
    related: tuple[str, ...]
    outlook: str
    ideas: tuple[Idea, ...]
    nearest_to: tuple[str, ...] = ()


class Catalogue(_Record, frozen=True):
    """All knowledge of the advisor."""

    meaning: Meaning
    skills: dict[str, Skill]
    goals: dict[str, Goal]
    work_styles: dict[str, WorkStyle]
    areas: tuple[Area, ...]

    def __post_init__(self) -> None:
        areas = {area.name for area in self.areas}
        for skill in filter(lambda skill: skill.kind_of, self.skills.values()):
            _require((skill.kind_of,), self.skills.keys(), f"{skill.name}: kind_of")
        for area in self.areas:
            _require(area.related, areas, f"{area.name}: related")
            for idea in area.ideas:
                _require(idea.skills, self.skills.keys(), f"{idea.name}: skills")
                _require(idea.goals, self.goals.keys(), f"{idea.name}: goals")
                _require(idea.styles, self.work_styles.keys(), f"{idea.name}: styles")
        names = [idea.name for _, idea in self.ideas()]
        if len(set(names)) < len(names):
            raise ValueError("two ideas have the same name")

    def ideas(self) -> Iterator[tuple[Area, Idea]]:
        """Every idea with its area, in the order of the file."""
        return ((area, idea) for area in self.areas for idea in area.ideas)


def _require(names: tuple[str, ...], known: Collection[str], where: str) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{where} names {', '.join(unknown)}, which the catalogue does not define")


def parse(text: str) -> Catalogue:
    """Read a catalogue from YAML.

    Raises:
        msgspec.ValidationError: it is not a catalogue; the message says where and why.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return msgspec.convert(yaml.load(text, Loader=loader), Catalogue)  # noqa: S506


@cache
def catalogue() -> Catalogue:
    """The catalogue of this package, read at the first call."""
    return parse(_FILE.read_text(encoding="utf-8"))
