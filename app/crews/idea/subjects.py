"""The meaning of a short text such as "vegan bakery": one head, and the words around it.

The head says what is done or sold; the other words say for whom, or of which kind. A match of the
head counts more than a match of the words around it. The catalogue lists the words with little
meaning of their own.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from itertools import pairwise

from app.crews.idea.catalogue import catalogue
from app.crews.idea.words import fold, without_tags, words

_SEGMENT = re.compile(r"[,;/&+()\n]|\s(?:and|or)\s", re.IGNORECASE)
_DETAIL = re.compile(
    r"\s(?:for|of|in|with|to|on|about|from|at|by|via|without|among)\s", re.IGNORECASE
)


class Match(IntEnum):
    """How closely an idea or an area meets a subject, from nothing to all of it."""

    NONE = 0
    RELATED = 1  # shares a word, but not the head
    PART = 2  # has the head, but not all the rest
    EXACT = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing that a text names. `words` are all its significant words, folded.

    `heads` has one word, or all broad words if there are no others. `activity` is the last word
    before a detail such as "for seniors"; it may be too broad for a head.
    """

    written: str
    activity: str
    heads: frozenset[str]
    words: frozenset[str]
    phrases: frozenset[str]

    def match(self, terms: Set[str], supporting: Set[str], *, ignored: Set[str]) -> Match:
        """Compare with folded `terms`; `supporting` words may only confirm details.

        `ignored` words make no relation if they are all that is shared.
        """
        phrase_words = {word for found in self.phrases & terms for word in found.split()}
        known = (self.words & terms) | phrase_words
        if (self.heads | {self.activity}) & known and self.words <= known | supporting:
            return Match.EXACT
        if self.heads & known or self.activity in phrase_words:
            return Match.PART
        return Match.RELATED if known - ignored else Match.NONE


def subjects(text: str) -> tuple[Subject, ...]:
    """Return the things that `text` names, in its order."""
    found = (_subject(segment.strip()) for segment in _SEGMENT.split(without_tags(text)))
    return tuple(filter(None, found))


@dataclass(frozen=True, slots=True)
class Meaning:
    """The folded words of the catalogue's `meaning`."""

    stop: frozenset[str]
    generic: frozenset[str]
    broad: frozenset[str]
    qualifiers: frozenset[str]
    vague: frozenset[str]


@cache
def meaning() -> Meaning:
    """The words with little meaning of their own."""
    known = catalogue().meaning
    return Meaning(
        fold(known.stop),
        fold(known.generic),
        fold(known.broad),
        fold(known.qualifiers),
        fold(known.vague),
    )


def _subject(segment: str) -> Subject | None:
    known = meaning()
    parts = [[folded for folded, _ in words(part)] for part in _DETAIL.split(segment)]
    dropped = known.stop | known.generic
    main, *details = ([word for word in part if word not in dropped] for part in parts)
    main = main or [word for word in parts[0] if word not in known.stop]
    if not main:
        return None
    around = [word for part in details for word in part]
    weak = known.broad | known.qualifiers
    strong = [word for word in main if word not in weak]
    strong = strong or [word for word in around if word not in weak]
    # Without a strong word, each broad one may be the head: "app development" is about apps.
    heads = strong[-1:] or [word for word in main if word not in known.qualifiers] or main[-1:]
    return Subject(
        written=segment,
        activity=main[-1],
        heads=frozenset(heads),
        words=frozenset((*main, *around)),
        phrases=frozenset(" ".join(pair) for part in (main, *details) for pair in pairwise(part)),
    )
