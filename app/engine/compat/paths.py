"""Relative paths in a crew's definition go by its own folder, not by the service's.

CrewAI takes them by the working directory, of which a process has only one.
"""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crewai import Crew
from crewai.skills import loader
from crewai.utilities.constants import KNOWLEDGE_DIRECTORY

_folder: contextvars.ContextVar[Path | None] = contextvars.ContextVar(
    "crew_capture_folder", default=None
)
_own_discover_skills = loader.discover_skills


@contextmanager
def paths_from(folder: Path | None) -> Iterator[None]:
    """Within this, knowledge, skills and prompt files are looked for in `folder`, if there is one.

    What a crew's own code opens is not changed.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def settle_paths(crew: Crew) -> None:
    """Make the paths of a crew that was just built absolute."""
    if crew.prompt_file is not None:
        crew.prompt_file = str(_located(Path(crew.prompt_file)))


def discover_skills(path: Path, *args: Any, **kwargs: Any) -> Any:
    """CrewAI's, in the crew's folder."""
    return _own_discover_skills(_located(path), *args, **kwargs)


class _KnowledgeDirectory(str):
    """CrewAI puts the name of a file behind it; it must be the crew's own folder then."""

    __slots__ = ()

    def __add__(self, rest: str) -> str:
        return f"{_located(Path(str(self)))}{rest}"


KNOWLEDGE = _KnowledgeDirectory(KNOWLEDGE_DIRECTORY)


def _located(path: Path) -> Path:
    folder = _folder.get()
    return path if folder is None else folder / path
