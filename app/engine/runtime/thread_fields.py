"""Threads that the code of crews starts: their log lines have the fields of the run.

A thread begins with an empty context. Outside of runs, threads start as always.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from app.logs import run_fields, with_run_fields

_T = TypeVar("_T")

_own_start = threading.Thread.start
_own_submit = ThreadPoolExecutor.submit

# The modules whose threads work for all runs, whichever run needs the first one. Work that is
# submitted to a pool has the fields of the run that submits it.
_SHARED: Final = ("aiosqlite.core", "concurrent.futures.thread")


def _start(self: threading.Thread) -> None:
    code = getattr(self, "_target", None) or type(self)
    if run_fields.get() is not None and getattr(code, "__module__", None) not in _SHARED:
        vars(self)["run"] = with_run_fields(self.run)
    _own_start(self)


def _submit(
    self: ThreadPoolExecutor, fn: Callable[..., _T], /, *args: Any, **kwargs: Any
) -> "Future[_T]":
    return _own_submit(self, with_run_fields(fn), *args, **kwargs)


INSTRUMENTED: Final = (
    (threading.Thread, "start", _start),
    (ThreadPoolExecutor, "submit", _submit),
)
