"""The files of one run: those that its tasks name by `output_file`.

Each run has a folder of its own, which only this user can read, and which exists until the run
ends. The run's code finds the files by their relative paths, before those of its project.
"""

import os
import shutil
import threading
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

# Python's own: the code of crews gets replacements, which search here.
_own_lstat: Final = os.lstat


class RunFiles:
    """The files of a run. Every method may be called in any thread."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self._is_removed = False
        self._lock = threading.Lock()

    def write(self, name: str, text: str) -> None:
        """Write a file; a name that leads out of the folder, or comes after the end, writes none.

        A leading slash is ignored, as CrewAI does.
        """
        parts = Path(name.lstrip("/")).parts
        if not parts or ".." in parts:
            return
        with self._lock:
            if self._is_removed:
                return
            if self._folder is None:
                self._folder = mkdtemp(prefix="crew_capture_run_")
            file = Path(self._folder, *parts)
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(text)

    def find(self, path: str) -> str | None:
        """The file with a relative path, if the run has it."""
        if self._folder is None:
            return None
        found = os.path.normpath(f"{self._folder}/{path}")
        if not found.startswith(f"{self._folder}/"):
            return None
        try:
            _own_lstat(found)
        except OSError:
            return None
        return found

    @property
    def exist(self) -> bool:
        """Whether the run has any files."""
        return self._folder is not None

    def remove(self) -> None:
        """Remove the files; later ones are not written."""
        with self._lock:
            self._is_removed = True
            folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
