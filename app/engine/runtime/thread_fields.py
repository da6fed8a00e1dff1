"""Threads that the code of crews starts have the log fields of the run, and the project.

A thread begins with an empty context. Outside of crews, threads start as always.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from app.logs import run_fields, with_run_fields
from app.projects import current_project, within
from app.projects.context import current_files, is_code_of_crews

_T = TypeVar("_T")

_own_start = threading.Thread.start
_own_submit = ThreadPoolExecutor.submit

# The modules whose threads work for all runs, whichever run needs the first one. Work that is
# submitted to a pool has the fields of the run that submits it.
_SHARED: Final = ("aiosqlite.core", "concurrent.futures.thread")


def _start(self: threading.Thread) -> None:
    code = getattr(self, "_target", None) or type(self)
    if getattr(code, "__module__", None) not in _SHARED:
        if is_code_of_crews():
            vars(self)["run"] = _within_project(self.run)
        if run_fields.get() is not None:
            vars(self)["run"] = with_run_fields(self.run)
    _own_start(self)


def _submit(
    self: ThreadPoolExecutor, fn: Callable[..., _T], /, *args: Any, **kwargs: Any
) -> "Future[_T]":
    if is_code_of_crews():
        fn = _within_project(fn)
    return _own_submit(self, with_run_fields(fn), *args, **kwargs)


def _within_project(function: Callable[..., _T]) -> Callable[..., _T]:
    project, files = current_project(), current_files()

    def call(*args: Any, **kwargs: Any) -> _T:
        with within(project, files):
            return function(*args, **kwargs)

    return call


INSTRUMENTED: Final = (
    (threading.Thread, "start", _start),
    (ThreadPoolExecutor, "submit", _submit),
)
