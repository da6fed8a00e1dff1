"""The offline advisor: answers the idea crew's prompts by rules and a catalogue, without a model.

Deterministic: the same profile always gets the same three reports, with the same ranking.
"""

from __future__ import annotations

from app.crews.idea.profile import find_task
from app.crews.idea.reports import WRITERS
from app.crews.idea.scoring import assess


def answer(prompt: str) -> str | None:
    """Write the markdown report that `prompt` requests, or return None for any other prompt.

    `prompt` is the texts of all messages joined by newlines; any text may surround the task.
    """
    found = find_task(prompt)
    if found is None:
        return None
    task, profile = found
    return WRITERS[task](assess(profile))
