"""The eight fields of a profile, and how they are found in a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import yaml

NO_EXPERIENCE: Final = "No detailed experience summary provided."

ASSUMED_MARK: Final = " (not given; assumed)"
"""Follows, in prompts, the default of a field that the person left empty."""


class Field(NamedTuple):
    """A field of the profile. `examples` are suggestions; any other text is allowed."""

    name: str
    label: str
    default: str
    description: str
    examples: tuple[str, ...]


FIELDS: Final = (
    Field(
        "goal_type",
        "Goal",
        "Extra Income",
        "The main goal of the business.",
        ("Extra Income", "Full-time income", "Passive Income", "Build a startup", "Social impact"),
    ),
    Field(
        "time_commitment",
        "Time",
        "<5 hrs/week",
        "The time that you have for it, in hours a week.",
        ("<5 hrs/week", "5-10 hrs/week", "10-20 hrs/week", "20+ hrs/week", "Full-time"),
    ),
    Field(
        "budget_range",
        "Budget",
        "Free / Sweat-equity only",
        "The money that you can spend on the start, in US dollars.",
        ("Free / Sweat-equity only", "$100 - $500", "$500 - $2,000", "$2,000 - $10,000"),
    ),
    Field(
        "interest_area",
        "Interest",
        "AI / Automation",
        "The field that interests you.",
        ("AI / Automation", "Education", "Food", "Health / Fitness", "E-commerce", "Pets"),
    ),
    Field(
        "sub_interest_area",
        "Sub-interest",
        "Chatbots",
        "A narrower interest within that field.",
        ("Chatbots", "Online tutoring", "Baking", "Yoga", "Second-hand clothes", "Dog walking"),
    ),
    Field(
        "work_style",
        "Work style",
        "Solo",
        "With whom and where you like to work.",
        ("Solo", "With a partner", "Small team", "Remote", "In person"),
    ),
    Field(
        "skill_strength",
        "Strength",
        "Analytical / Strategic",
        "Your strongest skill.",
        (
            "Analytical / Strategic",
            "Technical / Coding",
            "Creative / Design",
            "Communication / Sales",
            "Teaching / Explaining",
            "Hands-on / Craft",
        ),
    ),
    Field(
        "experience_summary",
        "Experience",
        NO_EXPERIENCE,
        "Your work and other experience, in a few sentences.",
        ("Ten years as a maths teacher; I write my own worksheets.",),
    ),
)
"""The eight inputs of the crew, in the order in which forms show them."""

LABELS: Final[Mapping[str, str]] = MappingProxyType({field.name: field.label for field in FIELDS})
"""The names of the fields in reports."""

DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {field.name: field.default for field in FIELDS}
)
"""The values that empty or missing fields have in prompts."""

_TASKS_FILE = Path(__file__).with_name("config") / "tasks.yaml"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_\-]*)}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A person's profile as they wrote it; a field is empty if they wrote nothing in it."""

    goal_type: str = ""
    time_commitment: str = ""
    budget_range: str = ""
    interest_area: str = ""
    sub_interest_area: str = ""
    work_style: str = ""
    skill_strength: str = ""
    experience_summary: str = ""


@dataclass(frozen=True, slots=True)
class _Template:
    """A task's description, cut at its placeholders: literal, field, literal, ..., literal."""

    task: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]


@cache
def _templates() -> tuple[_Template, ...]:
    tasks = yaml.safe_load(_TASKS_FILE.read_text(encoding="utf-8"))
    templates = []
    for name, config in tasks.items():
        parts = _PLACEHOLDER.split(config["description"].strip())
        templates.append(_Template(name, tuple(parts[0::2]), tuple(parts[1::2])))
    return tuple(templates)


def find_task(prompt: str) -> tuple[str, Profile] | None:
    """Return the task that `prompt` sets and the profile in it, or None if it sets none of ours.

    The prompt is compared with the very descriptions of `tasks.yaml`, so whatever surrounds them
    (role, context, output format) may change. The earliest description counts: nothing that a
    person wrote stands before it. A field ends where the text that follows it in the description
    begins, so a field may hold anything but that. A default with `ASSUMED_MARK` is read as empty.
    """
    starts = [
        (start, template)
        for template in _templates()
        if (start := prompt.find(template.literals[0])) >= 0
    ]
    for start, template in sorted(starts, key=lambda found: found[0]):
        values = _values(prompt, start, template)
        if values is not None:
            return template.task, Profile(**values)
    return None


def _values(prompt: str, start: int, template: _Template) -> dict[str, str] | None:
    position = start + len(template.literals[0])
    values = {}
    for field, following in zip(template.fields, template.literals[1:], strict=True):
        end = prompt.find(following, position)
        if end < 0:
            return None
        values[field] = _written(prompt[position:end].strip())
        position = end + len(following)
    return values


def _written(text: str) -> str:
    return "" if text == NO_EXPERIENCE or text.endswith(ASSUMED_MARK) else text
