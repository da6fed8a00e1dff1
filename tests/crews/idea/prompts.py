"""Prompts of the idea crew as a model gets them, without CrewAI."""

from __future__ import annotations

import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from app.crews.idea import profile as profile_module
from app.crews.idea.profile import Profile

TASKS = ("profile_analysis", "startup_ideas_research", "personalized_recommendations")

_TASKS_FILE = Path(profile_module.__file__).with_name("config") / "tasks.yaml"


@cache
def tasks() -> dict[str, Any]:
    described: dict[str, Any] = yaml.safe_load(_TASKS_FILE.read_text(encoding="utf-8"))
    return described


def render(task: str, profile: Profile, context: str = "") -> str:
    """The texts of a model call for `task`, joined by newlines."""
    values = asdict(profile)
    description = re.sub(r"\{(\w+)}", lambda found: values[found[1]], tasks()[task]["description"])
    prompt = (
        "You are Somebody. You have done this before.\nYour personal goal is: to help\n"
        f"\nCurrent Task: {description}\n"
        f"\nThis is the expected criteria for your final answer: {tasks()[task]['expected_output']}"
        "\nyou MUST return the actual complete content as the final answer, not a summary."
    )
    if context:
        prompt += f"\n\nThis is the context you're working with:\n{context}"
    return f"{prompt}\n\nProvide your complete response:"


def required_headings(task: str) -> list[str]:
    """The headings that the task's expected output lists."""
    lines = tasks()[task]["expected_output"].splitlines()
    return [line for line in lines if line.startswith("##") and "NAME" not in line]
