"""From a backend's name in the settings to the store."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage.drivers import Driver
from storage.drivers.local import LocalDriver
from storage.drivers.memory import MemoryDriver
from storage.store import OutputStore

_DIRECTORY_NAME = "idea_crew_outputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSettings:
    """What `create_store` needs to know; each backend looks at its own part only.

    backend: `local`, `memory` or `s3`, or several in their order, joined by `+`.
    directory: the folder that holds the outputs' own; None means the system's temporary folder.
    memory_max_bytes: the byte budget of `memory`.
    read_attempts, read_backoff_seconds: see OutputStore.read.
    """

    backend: str = "local"
    directory: Path | None = None
    memory_max_bytes: int = 256 * 1024 * 1024
    read_attempts: int = 3
    read_backoff_seconds: float = 0.1


def create_store(settings: StorageSettings) -> OutputStore:
    """The store that the settings describe; `start` opens it. Raises ValueError for a wrong one."""
    names = [name.strip() for name in settings.backend.split("+")]
    makers = _makers()
    if len(names) != 1 or names[0] not in makers:
        raise ValueError(f"backend {settings.backend!r}: allowed are {', '.join(makers)}")
    return OutputStore(
        makers[names[0]](settings),
        read_attempts=settings.read_attempts,
        read_backoff_seconds=settings.read_backoff_seconds,
    )


def _makers() -> dict[str, Callable[[StorageSettings], Driver]]:
    return {"local": _local, "memory": _memory}


def _local(settings: StorageSettings) -> Driver:
    return LocalDriver((settings.directory or Path(tempfile.gettempdir())) / _DIRECTORY_NAME)


def _memory(settings: StorageSettings) -> Driver:
    return MemoryDriver(settings.memory_max_bytes)
