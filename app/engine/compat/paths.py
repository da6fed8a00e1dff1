"""Relative paths in a crew's definition are resolved in its own folder, not in the service's.

CrewAI resolves them in the working directory, of which a process has only one.
"""

from pathlib import Path
from typing import Any, cast

from crewai import Crew
from crewai.skills import loader
from crewai.utilities.constants import KNOWLEDGE_DIRECTORY

from app.projects import current_project

_own_discover_skills = loader.discover_skills


def configure_paths(crew: Crew) -> None:
    """Make the paths of a newly built crew absolute, and read its skills.

    CrewAI would read them at the start of each run, on the event loop. Agents have read theirs.
    """
    if crew.skills:
        crew.skills = cast("Any", loader.load_skills(crew.skills, activate=False))
    if crew.prompt_file is not None:
        crew.prompt_file = str(_located(Path(crew.prompt_file)))


def discover_skills(path: Path, *args: Any, **kwargs: Any) -> Any:
    """CrewAI's `discover_skills`, in the crew's folder."""
    return _own_discover_skills(_located(path), *args, **kwargs)


class _KnowledgeDirectory(str):
    """A prefix to which CrewAI appends a file name; it becomes the crew's own folder."""

    __slots__ = ()

    def __add__(self, rest: str) -> str:
        return f"{_located(Path(str(self)))}{rest}"


KNOWLEDGE = _KnowledgeDirectory(KNOWLEDGE_DIRECTORY)


def _located(path: Path) -> Path:
    project = current_project()
    return path if project is None else project.cwd / path
