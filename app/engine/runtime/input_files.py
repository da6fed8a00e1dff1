"""Input files of tasks, which CrewAI reads by the package crewai-files, where it is installed.

CrewAI accesses its store of files by a new event loop in a new thread, about ten times a run. Model
classes of CrewAI read and encode the files within their asynchronous calls.
"""

import pickle
from collections.abc import Coroutine
from typing import Any, Final

from crewai.llms.base_llm import BaseLLM
from crewai.utilities import file_store

from app.projects.working_directory import resolved

try:
    from crewai_files.core import sources
except ImportError:
    sources = None  # type: ignore[assignment]


class _FileStore:
    """Replaces CrewAI's store of the files of crews and tasks, which is in memory, too.

    Like CrewAI's, it returns copies. Its methods never wait.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    async def set(self, key: str, files: object, *, ttl: int) -> None:
        self._files[key] = pickle.dumps(files)

    async def get(self, key: str) -> Any:
        files = self._files.get(key)
        return None if files is None else pickle.loads(files)  # noqa: S301 - our own

    async def delete(self, key: str) -> None:
        self._files.pop(key, None)

    def run(self, access: Coroutine[None, None, Any]) -> Any:
        """Execute an access to the store without an event loop, as CrewAI's `_run_sync`."""
        if not self._files and not getattr(access, "__name__", "").startswith("astore"):
            access.close()
            return None
        try:
            access.send(None)
        except StopIteration as ended:
            return ended.value
        raise RuntimeError("an access to the store of input files waits")


def _detect_content_type(path: Any, filename: str | None = None) -> str:
    """Find the type of a file in the folder of its project: libmagic opens it in C."""
    return str(_own_detect_content_type(resolved(path), filename))


_store: Final = _FileStore()
_own_detect_content_type: Any = None
INSTRUMENTED: list[tuple[Any, str, Any]] = [
    (file_store, "_file_store", _store),
    (file_store, "_run_sync", _store.run),
]
if sources is not None:
    _own_detect_content_type = sources.detect_content_type_from_path
    INSTRUMENTED.append((sources, "detect_content_type_from_path", _detect_content_type))


def has_files(messages: Any) -> bool:
    """Whether files belong to any of a call's messages."""
    return isinstance(messages, list) and any(message.get("files") for message in messages)


def with_files(model: BaseLLM, messages: list[Any]) -> list[Any]:
    """The messages with their files' content, as a model of CrewAI's sends them. It blocks."""
    sent: list[Any] = [dict(message) for message in messages]
    return model._process_message_files(sent)
