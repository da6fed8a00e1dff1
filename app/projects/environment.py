"""Environment variables of a project: those of the process, with the project's own changes.

Two projects may each have an `OPENAI_API_KEY`, which they read from `os.environ`. A variable that
the code of a project sets there, by `load_dotenv` or otherwise, is for that project only.
"""

import os
from collections.abc import Iterator
from typing import Any, Final

from app.projects.context import Project, current_project

_kind: Any = type(os.environ)
_own: Final = {
    name: getattr(_kind, name)
    for name in ("__getitem__", "__setitem__", "__delitem__", "__iter__", "__len__")
}


def install() -> None:
    """Replace the methods of `os.environ`. A second call has no effect."""
    if _kind.__getitem__ is _own["__getitem__"]:
        for method in (_get, _set, _delete, _iterate, _length):
            setattr(_kind, _METHODS[method], method)


def _project_of(variables: Any) -> Project | None:
    # `os.environb`, the same in bytes, remains that of the process.
    return current_project() if variables is os.environ else None


def _get(self: Any, name: str) -> Any:
    project = _project_of(self)
    if project is not None and name in project.environment:
        value = project.environment[name]
        if value is None:
            raise KeyError(name)
        return value
    return _own["__getitem__"](self, name)


def _set(self: Any, name: str, value: str) -> None:
    project = _project_of(self)
    if project is None:
        _own["__setitem__"](self, name, value)
        return
    self.encodekey(name), self.encodevalue(value)  # raises TypeError, as the process's
    project.environment[name] = value


def _delete(self: Any, name: str) -> None:
    project = _project_of(self)
    if project is None:
        _own["__delitem__"](self, name)
    else:
        _get(self, name)
        project.environment[name] = None


def _iterate(self: Any) -> Iterator[str]:
    project = _project_of(self)
    if project is None:
        return _own["__iter__"](self)  # type: ignore[no-any-return]
    changed = dict(project.environment)
    names = [name for name in _own["__iter__"](self) if name not in changed]
    return iter([*names, *(name for name, value in changed.items() if value is not None)])


def _length(self: Any) -> int:
    if _project_of(self) is None:
        return _own["__len__"](self)  # type: ignore[no-any-return]
    return sum(1 for _ in _iterate(self))


_METHODS: Final[dict[Any, str]] = {
    _get: "__getitem__",
    _set: "__setitem__",
    _delete: "__delitem__",
    _iterate: "__iter__",
    _length: "__len__",
}
