"""The eight fields of a profile, and how they are found in a prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

import yaml

NO_EXPERIENCE: Final = "No detailed experience summary provided."

DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "goal_type": "Extra Income",
        "time_commitment": "<5 hrs/week",
        "budget_range": "Free / Sweat-equity only",
        "interest_area": "AI / Automation",
        "sub_interest_area": "Chatbots",
        "work_style": "Solo",
        "skill_strength": "Analytical / Strategic",
        "experience_summary": NO_EXPERIENCE,
    }
)
"""The default values of empty or missing fields."""

_TASKS_FILE = Path(__file__).with_name("config") / "tasks.yaml"
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_\-]*)}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A person's profile, field by field, as they wrote it."""

    goal_type: str = DEFAULTS["goal_type"]
    time_commitment: str = DEFAULTS["time_commitment"]
    budget_range: str = DEFAULTS["budget_range"]
    interest_area: str = DEFAULTS["interest_area"]
    sub_interest_area: str = DEFAULTS["sub_interest_area"]
    work_style: str = DEFAULTS["work_style"]
    skill_strength: str = DEFAULTS["skill_strength"]
    experience_summary: str = DEFAULTS["experience_summary"]


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
    begins, so a field may hold anything but that.
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
        values[field] = prompt[position:end].strip() or DEFAULTS[field]
        position = end + len(following)
    return values
