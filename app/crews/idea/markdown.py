"""Markdown that escapes external text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\`*_\[\]{}|~]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])")
# CrewAI looks for these words in every answer, to find a tool call or the final answer.
_AGENT_WORDS = re.compile(
    r"\b(answer|thought|observation|action|input)(\s*[0-9]*\s*):", re.IGNORECASE
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def quote(text: str, most_characters: int = 80) -> str:
    """Return `text` on one line, cut to `most_characters`, escaped for markdown."""
    line = " ".join(_CONTROL.sub(" ", text).split())
    if len(line) > most_characters:
        line = line[: most_characters - 1].rstrip() + "…"
    return _AGENT_WORDS.sub(r"\1\2\\:", _SPECIAL.sub(r"\\\g<0>", line))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. Cells must not hold a bare `|` or a newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    """Return a bulleted list."""
    return "\n".join(f"- {item}" for item in items)


def numbered(items: Iterable[str]) -> str:
    """Return a numbered list."""
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, start=1))


def checkboxes(items: Iterable[str]) -> str:
    """Return a list of boxes to tick."""
    return "\n".join(f"- [ ] {item}" for item in items)
