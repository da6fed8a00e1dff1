"""Projects, and the one whose code executes here."""

import contextvars
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from app.projects.run_files import RunFiles

# The service's packages. A project's imports of these names mean other ones, if there are any.
OURS: Final = frozenset({"app", "storage"})


@dataclass(eq=False, slots=True)
class Project:
    """A folder with the code of a crew.

    `roots` are the folders in which its imports are looked up, in order. `installed` are top-level
    modules outside of them that are also imported separately for it. `environment` are the
    variables that differ from those of the process; None stands for a deleted one. `cwd` is its
    working directory: the folder, until its code changes it.
    """

    name: str
    folder: Path
    roots: list[str] = field(default_factory=list)
    installed: frozenset[str] = OURS
    environment: dict[str, str | None] = field(default_factory=dict)
    cwd: Path = field(init=False)

    def __post_init__(self) -> None:
        self.cwd = self.folder


_current: contextvars.ContextVar[Project | None] = contextvars.ContextVar(
    "crew_capture_project", default=None
)


def current_project() -> Project | None:
    """The project whose code executes in this thread or asyncio task."""
    return _current.get()


_files: contextvars.ContextVar[RunFiles | None] = contextvars.ContextVar(
    "crew_capture_run_files", default=None
)
_is_active: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "crew_capture_code_of_crews", default=False
)


def is_code_of_crews() -> bool:
    """Whether code of a crew executes in this thread or asyncio task, with a project or without."""
    return _is_active.get()


def current_files() -> RunFiles | None:
    """The files of the run whose code executes in this thread or asyncio task."""
    return _files.get()


def within(project: Project | None, files: RunFiles | None = None) -> AbstractContextManager[None]:
    """Within this, code of a crew executes, in the project's surroundings if there is one.

    It finds the `files` of its run.
    """
    _install()
    return _entered(project, True, files or _files.get())


def outside() -> AbstractContextManager[None]:
    """Within this, code of the service executes, also inside a run: it has no project."""
    return _entered(None, False, None)


@contextmanager
def _entered(project: Project | None, is_active: bool, files: RunFiles | None) -> Iterator[None]:
    tokens = _current.set(project), _is_active.set(is_active), _files.set(files)
    try:
        yield
    finally:
        _current.reset(tokens[0])
        _is_active.reset(tokens[1])
        _files.reset(tokens[2])


# Of a program: the run's inputs, which replace those of its kickoffs and answer its `input()`.
program_inputs: contextvars.ContextVar[Mapping[str, Any] | None] = contextvars.ContextVar(
    "crew_capture_program_inputs", default=None
)
# The names of the inputs that answer `input()`, by file and line.
answers: contextvars.ContextVar[Mapping[tuple[str, int], str] | None] = contextvars.ContextVar(
    "crew_capture_answers", default=None
)


def kickoff_inputs(inputs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The inputs of a kickoff, with the values that the run of a program gives for them."""
    given = program_inputs.get()
    if not given or not inputs:
        return inputs
    return {name: given.get(name, value) for name, value in inputs.items()}


def _install() -> None:
    # A process without crews pays for none of the replacements.
    from app.projects import environment, terminal, working_directory  # noqa: PLC0415

    working_directory.install()
    environment.install()
    terminal.install()
