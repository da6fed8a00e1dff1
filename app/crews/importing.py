"""Imports the code of a project's folder, separately from that of every other folder.

Two projects may both have a module `main` or a package `tools`, which must not be confused with
each other or with the service's own. A project's modules therefore have a different name in Python,
`served_projects.NAME.tools`, under which their `import` statements find `tools`. Neither `sys.path`
nor the imports of other code change.
"""

import builtins
import importlib
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = "served_projects"


def import_from(folder: Path, name: str, module: str) -> ModuleType:
    """Import `module` of the code in `folder` for the project `name`, unless it is imported.

    Code that calls `importlib.import_module` for a module of its own must pass the full name, such
    as `f"{__package__}.tools"`.
    """
    _make_root()
    project = f"{_ROOT}.{name}"
    if getattr(sys.modules.get(project), "__path__", None) != [str(folder)]:
        _forget(project)
        package = ModuleType(project)
        package.__path__ = [str(folder)]
        sys.modules[project] = package
    return importlib.import_module(f"{project}.{module}")


def _make_root() -> None:
    if _ROOT not in sys.modules:
        root = ModuleType(_ROOT)
        root.__path__ = []
        sys.modules[_ROOT] = root
        sys.meta_path.insert(0, _Finder())


def _forget(project: str) -> None:
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{project}.")]:
        del sys.modules[name]


class _Finder(MetaPathFinder):
    """Finds the modules of projects as Python does, and loads them with our import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{_ROOT}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Loads a project's module so that all its `import` statements call our import."""

    def exec_module(self, module: ModuleType) -> None:
        project = ".".join(module.__name__.split(".")[:2])
        own = dict(vars(builtins), __import__=_project_import(project))
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


def _is_own(project: str, top: str) -> bool:
    if f"{project}.{top}" in sys.modules:
        return True
    spec = PathFinder.find_spec(f"{project}.{top}", sys.modules[project].__path__)
    if spec is None:
        return False
    # A folder without `__init__.py` is a package only if nothing else has its name.
    return spec.origin is not None or find_spec(top) is None
