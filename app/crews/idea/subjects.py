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
from app.crews.idea.words import fold, words

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
    """One thing that a text names. `words` are all its significant words, folded."""

    written: str
    head: str
    head_written: str
    words: frozenset[str]
    phrases: frozenset[str]

    def match(self, terms: Set[str], supporting: Set[str]) -> Match:
        """Compare with an idea's folded `terms`; `supporting` words may only confirm details."""
        phrase_words = {word for found in self.phrases & terms for word in found.split()}
        known = (self.words & terms) | phrase_words
        if self.head in known:
            return Match.EXACT if self.words <= known | supporting else Match.PART
        return Match.RELATED if known - _meaning().qualifiers else Match.NONE


def subjects(text: str) -> tuple[Subject, ...]:
    """Return the things that `text` names, in its order."""
    found = (_subject(segment.strip()) for segment in _SEGMENT.split(text))
    return tuple(filter(None, found))


@dataclass(frozen=True, slots=True)
class _Meaning:
    stop: frozenset[str]
    generic: frozenset[str]
    broad: frozenset[str]
    qualifiers: frozenset[str]


@cache
def _meaning() -> _Meaning:
    known = catalogue().meaning
    return _Meaning(
        fold(known.stop), fold(known.generic), fold(known.broad), fold(known.qualifiers)
    )


def _subject(segment: str) -> Subject | None:
    meaning = _meaning()
    main, *details = ([*words(part)] for part in _DETAIL.split(segment))
    for drop in (meaning.stop | meaning.generic, meaning.stop):
        kept = [(folded, written) for folded, written in main if folded not in drop]
        if kept:
            break
    else:
        return None
    dropped = meaning.stop | meaning.generic
    around = [one for part in details for one in part if one[0] not in dropped]
    weak = meaning.broad | meaning.qualifiers
    heads = (
        [one for one in kept if one[0] not in weak]
        or [one for one in around if one[0] not in weak]
        or [one for one in kept if one[0] not in meaning.qualifiers]
        or kept
    )
    folded_main = [folded for folded, _ in kept]
    return Subject(
        written=segment,
        head=heads[-1][0],
        head_written=heads[-1][1],
        words=frozenset((*folded_main, *(folded for folded, _ in around))),
        phrases=frozenset(map(" ".join, pairwise(folded_main))),
    )
