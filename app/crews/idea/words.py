"""Words and two-word phrases of a text, in a form in which they can be compared."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*[+#]*")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_CLAUSE_END = re.compile(r"[.,;:!?()\n]|\b(?:but|though|although|however|except)\b", re.IGNORECASE)
_DENIAL = re.compile(
    r"\b(?:no|not|nor|never|without|lack(?:s|ing)?|cannot|zero|little|hardly|barely|weak|bad|poor"
    r"|hate|dislike|(?:ca|wo|is|do|does|did|have|has)n['’]?t)\b(?!\s+(?:only|longer|just)\b)",
    re.IGNORECASE,
)


def phrases(text: str) -> dict[str, str]:
    """Return every word and every two neighbouring words of `text`: folded form -> as written.

    The folded form ignores case, apostrophes, punctuation between words and the plural.
    """
    in_order = list(words(text))
    found = dict(in_order)
    for (first, first_written), (second, second_written) in pairwise(in_order):
        found[f"{first} {second}"] = f"{first_written} {second_written}"
    return found


def fold(phrases_: Iterable[str]) -> frozenset[str]:
    """Return the folded forms of `phrases_`, to look the result of `phrases` up in."""
    return frozenset(" ".join(folded for folded, _ in words(phrase)) for phrase in phrases_)


def claimed_and_denied(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the phrases that `text` claims and those that it denies ("no coding so far").

    A denial reaches from its word to the end of the clause.
    """
    claimed: dict[str, str] = {}
    denied: dict[str, str] = {}
    for clause in _CLAUSE_END.split(without_tags(text)):
        denial = _DENIAL.search(clause)
        cut = denial.start() if denial else len(clause)
        claimed |= phrases(clause[:cut])
        denied |= phrases(clause[cut:])
    return claimed, denied


def without_tags(text: str) -> str:
    """Return `text` with a space for each markup tag, whose name is no word of the person."""
    return _TAG.sub(" ", text)


def words(text: str) -> Iterator[tuple[str, str]]:
    """The words of `text` in order, each folded and as written; markup tags are no words."""
    for word in _WORD.findall(without_tags(text)):
        written = word.lower()
        yield _stem(written.replace("'", "").replace("’", "")), written


def _stem(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
