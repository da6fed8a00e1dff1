"""The working directory of a project's code: relative paths are resolved in the project's folder.

A file of the run precedes one of the folder.

A process has one working directory, which all its threads share. So Python's functions for files
are replaced: they resolve relative paths first. These are `open`, the functions of `os`, and all
that calls them, such as `pathlib`, `shutil` and `glob`; also `sqlite3.connect` and the start of
programs. Libraries that open files in C or Rust need absolute paths.
"""

import builtins
import functools
import io
import os
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from app.projects.context import current_files, current_project

_Function = Callable[..., Any]

# Functions of `os` with a path as their first argument, and those that change its folder.
_READERS: Final = (
    "stat", "lstat", "listdir", "scandir", "access", "readlink", "statvfs", "chmod", "utime",
    "truncate",
)  # fmt: skip
_WRITERS: Final = ("mkdir", "rmdir", "remove", "unlink")
_own_getcwd, _own_chdir, _own_popen = os.getcwd, os.chdir, subprocess.Popen.__init__
_own_open, _own_os_open, _own_connect = io.open, os.open, sqlite3.connect
_MODES_THAT_WRITE: Final = frozenset("wax+")


def install() -> None:
    """Replace the functions. A second call has no effect."""
    if os.getcwd is not _own_getcwd:
        return
    builtins.open = io.open = _open
    setattr(os, "open", _os_open)  # noqa: B010 - its type is that of an overloaded function
    setattr(sqlite3, "connect", _connect)  # noqa: B010
    for name in _READERS:
        setattr(os, name, _resolving(getattr(os, name), writes=False))
    for name in _WRITERS:
        setattr(os, name, _resolving(getattr(os, name), writes=True))
    for name in ("rename", "replace", "link"):
        setattr(os, name, _resolving_both(getattr(os, name)))
    os.symlink = _symlink
    os.getcwd, os.chdir = _getcwd, _chdir
    subprocess.Popen.__init__ = _popen  # type: ignore[method-assign]


def resolved(path: Any, *, writes: bool = False) -> Any:
    """The path that code of a crew means: a file of its run, or one in the working directory.

    Other absolute paths are unchanged. A file to be written is never the run's.
    """
    project, files = current_project(), current_files()
    if files is not None and not files.exist:
        files = None
    if path is None or isinstance(path, int) or (project is None and files is None):
        return path
    plain = os.fspath(path)
    if isinstance(plain, bytes):
        plain = os.fsdecode(plain)
    directory = _own_getcwd() if project is None else str(project.cwd)
    relative = plain.removeprefix(f"{directory}/")
    if relative.startswith("/"):
        return path
    if files is not None and not writes and (found := files.find(relative)) is not None:
        return found
    return path if plain.startswith("/") or project is None else f"{directory}/{plain}"


@functools.wraps(_own_open)
def _open(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
    return _own_open(
        resolved(file, writes=not _MODES_THAT_WRITE.isdisjoint(mode)), mode, *args, **options
    )


@functools.wraps(_own_os_open)
def _os_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
    if options.get("dir_fd") is None:
        path = resolved(path, writes=bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)))
    return _own_os_open(path, flags, *args, **options)


@functools.wraps(_own_connect)
def _connect(database: Any, *args: Any, **options: Any) -> Any:
    name = os.fsdecode(database)
    if name and not name.startswith((":", "file:")):
        database = resolved(database)
    return _own_connect(database, *args, **options)


def _resolving(function: _Function, *, writes: bool) -> _Function:
    @functools.wraps(function)
    def call(path: Any = ".", *args: Any, **options: Any) -> Any:
        if options.get("dir_fd") is None:
            path = resolved(path, writes=writes)
        return function(path, *args, **options)

    return call


def _resolving_both(function: _Function) -> _Function:
    @functools.wraps(function)
    def call(src: Any, dst: Any, **options: Any) -> Any:
        if options.get("src_dir_fd") is None:
            src = resolved(src)
        if options.get("dst_dir_fd") is None:
            dst = resolved(dst, writes=True)
        return function(src, dst, **options)

    return call


_own_symlink = os.symlink


@functools.wraps(_own_symlink)
def _symlink(src: Any, dst: Any, *args: Any, **options: Any) -> None:
    # The target of a link is relative to the link.
    _own_symlink(src, resolved(dst, writes=True), *args, **options)


@functools.wraps(_own_getcwd)
def _getcwd() -> str:
    project = current_project()
    return _own_getcwd() if project is None else str(project.cwd)


@functools.wraps(_own_chdir)
def _chdir(path: Any) -> None:
    project = current_project()
    if project is None:
        _own_chdir(path)
    else:
        os.scandir(path).close()  # raises OSError for a folder that does not exist
        project.cwd = Path(os.path.realpath(path))


@functools.wraps(_own_popen)
def _popen(self: Any, *args: Any, **options: Any) -> None:
    project = current_project()
    if project is not None:
        options["cwd"] = resolved(options.get("cwd") or ".")
        if options.get("env") is None:
            options["env"] = dict(os.environ)
    _own_popen(self, *args, **options)
