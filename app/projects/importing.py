"""Imports the code of a project, separately from that of every other project.

Two projects may both have a module `main` or a package `tools`, which must not be confused with
each other or with the service's own. A project's modules therefore have a different name in Python,
`served_projects.NAME.tools`, under which their `import` statements find `tools`. Neither `sys.path`
nor the imports of other code change: folders that a project adds to `sys.path` become its own.
"""

import builtins
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from app.projects.context import Project, current_project, outside, within

_ROOT = "served_projects"
# A folder with this file has the service's own packages, also those of another copy.
_FILE_OF_OURS: Final = "app/projects/importing.py"
_own_import_module = importlib.import_module
# The entries of `sys.path` that no project added, and the projects that are imported now.
_known_paths: set[str] = set()
_importing: set[str] = set()


def import_from(project: Project, module: str) -> ModuleType:
    """Import `module` of the project, unless it is imported, and return it."""
    _make_root()
    _known_paths.update(sys.path)
    package = f"{_ROOT}.{project.name}"
    if getattr(sys.modules.get(package), "project", None) is not project:
        _forget(package)
        made = ModuleType(package)
        made.__path__ = project.roots
        made.project = project  # type: ignore[attr-defined]
        sys.modules[package] = made
    _importing.add(package)
    try:
        with within(project):
            return _own_import_module(f"{package}.{module}")
    finally:
        _adopt_paths(package)
        _importing.discard(package)


def execute(project: Project, file: Path) -> None:
    """Execute a program of an imported project, as `python FILE` does, in its own namespace."""
    own = dict(vars(builtins), __import__=_project_import(f"{_ROOT}.{project.name}"))
    names = {"__name__": "__main__", "__file__": str(file), "__builtins__": own}
    exec(compile(file.read_bytes(), str(file), "exec"), names)  # noqa: S102 - a crew is code


def folders_of_users() -> list[str]:
    """The folders on the path of Python, without those of the service's own packages."""
    with outside():
        return [path for path in sys.path if not Path(path, _FILE_OF_OURS).is_file()]


def _make_root() -> None:
    if _ROOT not in sys.modules:
        root = ModuleType(_ROOT)
        root.__path__ = []
        sys.modules[_ROOT] = root
        sys.meta_path.insert(0, _Finder())
        importlib.import_module = _import_module


def _forget(project: str) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{project}.")]:
        del sys.modules[name]


def _import_module(name: str, package: str | None = None) -> ModuleType:
    """Replaces `importlib.import_module`: called by a project, it finds the project's modules.

    The same for CrewAI, which imports the Python names in a project's declaration.
    """
    caller = sys._getframe(1).f_globals.get("__name__", "")
    project = None
    if caller.startswith(f"{_ROOT}."):
        project = _package_of(caller)
    elif caller.startswith("crewai.") and (current := current_project()) is not None:
        project = f"{_ROOT}.{current.name}"
    if project is None or project not in sys.modules or name.startswith("."):
        return _own_import_module(name, package)
    if not _is_own(project, name.partition(".")[0]):
        return _own_import_module(name)
    return _own_import_module(f"{project}.{name}")


def _package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


class _Finder(MetaPathFinder):
    """Finds the modules of projects as Python does, and loads them with our import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{_ROOT}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target) or _installed_spec(fullname)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def _installed_spec(fullname: str) -> ModuleSpec | None:
    """Find a module outside of its project that is imported separately, such as another `app`."""
    package, _, top = fullname.rpartition(".")
    project: Project | None = getattr(sys.modules.get(package), "project", None)
    if project is None or top not in project.installed:
        return None
    return PathFinder.find_spec(fullname, folders_of_users())


class _Loader(SourceFileLoader):
    """Loads a project's module so that all its `import` statements call our import."""

    def exec_module(self, module: ModuleType) -> None:
        own = dict(vars(builtins), __import__=_project_import(_package_of(module.__name__)))
        module.__dict__["__builtins__"] = own
        super().exec_module(module)


@cache
def _project_import(project: str) -> Any:
    def import_(
        name: str,
        globals_: Mapping[str, object] | None = None,
        locals_: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level or not _is_own(project, top):
            return builtins.__import__(name, globals_, locals_, fromlist, level)
        found = builtins.__import__(f"{project}.{name}", globals_, locals_, fromlist, 0)
        # `import a.b` binds `a`; Python returns the outermost package, which here is the root.
        return found if fromlist else sys.modules[f"{project}.{top}"]

    return import_


def _adopt_paths(package: str) -> None:
    """Move the folders that a project has added to `sys.path` to the project's own.

    While it is imported, these are all new ones; later, those in its folder.
    """
    project: Project = sys.modules[package].project
    first_known = next((i for i, path in enumerate(sys.path) if path in _known_paths), 0)
    for index, path in reversed(list(enumerate(sys.path))):
        if path in _known_paths:
            continue
        folder = Path(os.path.realpath(project.cwd / path))
        if package not in _importing and not folder.is_relative_to(project.folder):
            continue
        del sys.path[index]
        if str(folder) not in project.roots:
            at = 0 if index < first_known else len(project.roots)
            project.roots.insert(at, str(folder))


def _is_own(package: str, top: str) -> bool:
    """Whether an import in a project's code means the project's own module."""
    if f"{package}.{top}" in sys.modules:
        return True
    if not _known_paths.issuperset(sys.path):
        _adopt_paths(package)
    project: Project = sys.modules[package].project
    spec = PathFinder.find_spec(f"{package}.{top}", project.roots)
    if top in project.installed:
        return (spec or _installed_spec(f"{package}.{top}")) is not None
    if spec is None:
        return False
    if spec.origin is None:
        # A folder without `__init__.py` is a package only if no module has its name.
        return not _is_module_elsewhere(top)
    # Only the folder of the program that Python executes precedes the standard library.
    file = Path(spec.origin)
    folder = file.parents[1] if spec.submodule_search_locations else file.parent
    return top not in sys.stdlib_module_names or str(folder) == project.roots[0]


def _is_module_elsewhere(top: str) -> bool:
    try:
        found = find_spec(top)
    except ValueError:  # a module without a specification, such as `__main__`
        return True
    return found is not None and found.origin is not None
