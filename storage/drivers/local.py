"""Outputs as files in one directory."""

import asyncio
import errno
import itertools
import os
import re
import secrets
import stat
import threading
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage.drivers import Driver, Entry, Listing
from storage.drivers.threads import BatchingThreadPool
from storage.drivers.writes import Write, Writes
from storage.errors import (
    BufferFull,
    LocationUnusable,
    OutputNotFound,
    OutputUnavailable,
    StorageError,
)

T = TypeVar("T")

_THREADS = 4
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}-[0-9]+\.tmp")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_NO_FILE = {errno.ENOENT, errno.ELOOP}  # ELOOP: a symbolic link, which is never ours


class LocalDriver(Driver):
    """One file for each name, in a directory that only its owner can enter.

    All calls use the directory's descriptor, so that no path is resolved twice and no symbolic
    link is followed. If the directory is removed under a running process, the next call creates it
    again. Nothing is flushed to disk: a crash of the process can't harm outputs, a power cut may.
    """

    def __init__(self, directory: Path, *, removed_with: Collection[str] | None = None) -> None:
        """With `removed_with`, the end removes a directory that holds no names but these."""
        self._removed_with = removed_with
        self.location = str(directory)
        self.backend = "local"
        self._directory = directory
        self._threads = BatchingThreadPool("storage-local", _THREADS)
        self._writes = Writes(lambda name: self._threads.submit(partial(self._remove, [name])))
        self._fd = -1
        self._spent_fds: list[int] = []
        self._opening = threading.Lock()
        self._scan: _Scan | None = None
        # Makes temporary names unique across processes and machines.
        self._writer = secrets.token_hex(8)
        self._serial = itertools.count()

    async def start(self) -> None:
        try:
            self._fd = await self._threads.submit(self._open)
        except FileNotFoundError as error:
            problem = (
                f"{self._directory.parent} does not exist: make it, or name another in TEMP_DIR"
            )
            raise LocationUnusable(self.location, problem) from error
        except OSError as error:
            raise LocationUnusable(self.location, error.strerror or str(error)) from error

    async def put(self, name: str, data: bytes) -> None:
        await self._writes.run(
            name, lambda write: self._threads.submit(partial(self._write, name, data, write))
        )

    async def get(self, name: str) -> bytes:
        return await self._threads.submit(partial(self._read, name))

    async def delete(self, names: Collection[str]) -> Mapping[str, StorageError]:
        return await self._threads.submit(partial(self._remove, tuple(names)))

    async def list(self, prefix: str = "") -> Listing:
        names = await self._fresh_names()
        return await self._threads.submit(partial(self._list, prefix, names))

    async def aclose(self) -> None:
        await self._writes.aclose()
        if self._removed_with is not None and self._fd >= 0:
            with suppress(OSError):  # it is in use, or gone
                await self._threads.submit(partial(self._remove_directory, self._removed_with))
        await self._threads.aclose()
        for fd in (self._fd, *self._spent_fds):
            if fd >= 0:
                os.close(fd)
        self._fd, self._spent_fds = -1, []

    def _fresh_names(self) -> Awaitable["_Names"]:
        """The names in the directory, read after this call.

        Calls that are made before a scan begins share it: a thousand runs that list their outputs
        at once cost one scan.
        """
        if self._scan is None or self._scan.begun:
            self._scan = scan = _Scan()
            scan.names = self._threads.submit(partial(self._scan_names, scan))
        return asyncio.shield(self._scan.names)

    # The methods below run in threads.

    def _open(self) -> int:
        """Open the directory, and create it if it is missing. Its parent must exist."""
        with suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        status = os.fstat(fd)
        problem = None
        if status.st_uid != os.geteuid():
            problem = f"it is owned by user {status.st_uid}, not by this process's {os.geteuid()}"
        elif status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            problem = f"it is open to others (mode {mode:04o}); chmod 700 it"
        if problem:
            os.close(fd)
            raise LocationUnusable(self.location, problem)
        return fd

    def _in_directory(self, act: Callable[[int], T]) -> T:
        directory = self._fd
        try:
            return act(directory)
        except OSError as error:
            if not _is_removal(error, directory):
                raise
        return act(self._reopen(directory))

    def _reopen(self, removed_fd: int) -> int:
        with self._opening:
            if self._fd == removed_fd:
                self._fd = self._open()
                # Other threads may be using it, so `aclose` closes it.
                self._spent_fds.append(removed_fd)
            return self._fd

    def _write(self, name: str, data: bytes, write: Write) -> None:
        if write.abandoned:
            return

        def attempt() -> None:
            self._in_directory(lambda directory: self._write_in(directory, name, data, write))

        with self._mapped_errors(name):
            try:
                attempt()
            except FileNotFoundError:  # a sweep of all files removed the unfinished one
                attempt()

    def _write_in(self, directory: int, name: str, data: bytes, write: Write) -> None:
        unfinished = f".{self._writer}-{next(self._serial)}.tmp"
        fd = os.open(
            unfinished,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW,
            0o600,
            dir_fd=directory,
        )
        try:
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            finally:
                os.close(fd)
            os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
            write.landed = True
        finally:
            if not write.landed:
                with suppress(OSError):
                    _unlink(unfinished, directory)

    def _read(self, name: str) -> bytes:
        with self._mapped_errors(name):
            try:
                return self._in_directory(lambda directory: _read_in(directory, name))
            except OSError as error:
                if error.errno in _NO_FILE:
                    raise OutputNotFound(name, self.location) from None
                raise

    def _remove(self, names: Collection[str]) -> dict[str, StorageError]:
        failures: dict[str, StorageError] = {}
        for name in names:
            try:
                with self._mapped_errors(name), suppress(FileNotFoundError):
                    self._in_directory(partial(_unlink, name))
            except StorageError as error:
                failures[name] = error
        return failures

    def _remove_directory(self, removed_with: Collection[str]) -> None:
        """Remove the directory, unless other files are in it: those of another process."""
        names = _names_in(self._fd)
        if set(names.finished) <= set(removed_with) and not names.unfinished:
            for name in names.finished:
                _unlink(name, self._fd)
            self._directory.rmdir()

    def _scan_names(self, scan: "_Scan") -> "_Names":
        scan.begun = True
        with self._mapped_errors("*"):
            return self._in_directory(_names_in)

    def _list(self, prefix: str, names: "_Names") -> Listing:
        with self._mapped_errors(f"{prefix}*"):
            return self._in_directory(lambda directory: _listing(directory, prefix, names))

    @contextmanager
    def _mapped_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except LocationUnusable as error:
            raise OutputUnavailable(name, self.location, error.cause) from error
        except OSError as error:
            cause = error.strerror or str(error)
            if error.errno in _NO_ROOM:
                raise BufferFull(name, self.location, cause) from error
            raise OutputUnavailable(name, self.location, cause) from error


def _is_removal(error: OSError, directory: int) -> bool:
    """Whether the error means that the open directory was removed."""
    return error.errno == errno.ESTALE or (
        error.errno == errno.ENOENT and os.fstat(directory).st_nlink == 0
    )


def _unlink(name: str, directory: int) -> None:
    os.unlink(name, dir_fd=directory)


def _read_in(directory: int, name: str) -> bytes:
    # O_NONBLOCK: opening a foreign pipe must not wait for its other end.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ELOOP, "not a regular file")
        data = os.read(fd, status.st_size)
        if len(data) != status.st_size:
            raise OSError(errno.EIO, f"{len(data)} of {status.st_size} bytes could be read")
        return data
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class _Names:
    """The names in a directory, sorted."""

    finished: list[str]
    unfinished: list[str]

    def beginning_with(self, prefix: str) -> Iterator[str]:
        for at in range(bisect_left(self.finished, prefix), len(self.finished)):
            if not self.finished[at].startswith(prefix):
                return
            yield self.finished[at]


class _Scan:
    """A scan of the directory, requested and perhaps begun."""

    names: asyncio.Future[_Names]
    begun = False


def _names_in(directory: int) -> _Names:
    if os.fstat(directory).st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, "the directory was removed")
    # Through a descriptor of its own: the position in the directory belongs to the descriptor
    # and its duplicates, so concurrent scans would each get a part.
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)
    try:
        with os.scandir(own) as files:
            names = sorted(file.name for file in files)
    finally:
        os.close(own)
    unfinished = [name for name in names if _UNFINISHED.fullmatch(name)]
    if unfinished:
        ours = set(unfinished)
        names = [name for name in names if name not in ours]
    return _Names(names, unfinished)


def _listing(directory: int, prefix: str, names: _Names) -> Listing:
    # The file system's clock, which may differ from this machine's. Touching the directory needs
    # no room on a full disk, unlike a new file. If that fails, the directory's last change is used:
    # it makes nothing older than it is.
    with suppress(OSError):
        os.utime(directory)
    now = os.fstat(directory).st_mtime
    room = os.fstatvfs(directory)
    return Listing(
        list(_entries(directory, names.beginning_with(prefix), now)),
        list(_entries(directory, names.unfinished, now)),
        free_bytes=room.f_bavail * room.f_frsize,
    )


def _entries(directory: int, names: Iterable[str], now: float) -> Iterator[Entry]:
    for name in names:
        with suppress(FileNotFoundError):  # gone meanwhile
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                yield _entry(name, status, now)


def _entry(name: str, status: os.stat_result, now: float) -> Entry:
    modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
    return Entry(name, status.st_size, modified_at, age_seconds=now - status.st_mtime)
