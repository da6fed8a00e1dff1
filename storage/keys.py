"""The name of a stored output."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from storage.errors import InvalidKey

_MAX_FILENAME_LENGTH = 80
_FILENAME = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{_MAX_FILENAME_LENGTH - 1}}}")
_NAME = re.compile(rf"([0-9a-f]{{32}})_(0|[1-9][0-9]{{0,11}})_({_FILENAME.pattern})\.md")
_MARKED = re.compile(r".*-[0-9a-f]{8}")


@dataclass(frozen=True, slots=True, order=True)
class OutputKey:
    """The identity of an output of one attempt of a run. `str(key)` is its name in every backend.

    run_id: the run.
    started_at: the start of the attempt, in whole seconds since 1970. It grows with each attempt
        of a run and so acts as a fencing token: no attempt can change another's outputs.
    filename: 1 to 80 of `a-z 0-9 _ -`, not beginning with `_` or `-`. Without capitals, no two
        names collide on a file system that ignores case.

    Raises InvalidKey when a part breaks these rules.
    """

    run_id: UUID
    started_at: int
    filename: str

    def __post_init__(self) -> None:
        if not isinstance(self.run_id, UUID):
            raise InvalidKey(repr(self.run_id), "the run id must be a UUID")
        if type(self.started_at) is not int or not 0 <= self.started_at < 10**12:
            raise InvalidKey(repr(self.started_at), "started_at must be whole seconds since 1970")
        if not isinstance(self.filename, str) or not _FILENAME.fullmatch(self.filename):
            raise InvalidKey(
                repr(self.filename),
                f"a filename is 1 to {_MAX_FILENAME_LENGTH} of a-z 0-9 _ -, "
                "beginning with a letter or digit; filename_from() makes one of any text",
            )

    def __str__(self) -> str:
        return f"{self.run_id.hex}_{self.started_at}_{self.filename}.md"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The key with this name: `OutputKey.parse(str(key)) == key`. Raises InvalidKey."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidKey(repr(name), "expected {uuid hex}_{timestamp}_{filename}.md")
        run_id, started_at, filename = match.groups()
        return cls(UUID(hex=run_id), int(started_at), filename)

    @staticmethod
    def is_name(name: str) -> bool:
        """Whether `parse` accepts the name."""
        return _NAME.fullmatch(name) is not None

    @staticmethod
    def filename_from(text: str) -> str:
        """A legal filename for any text, such as the name of a task.

        A legal filename stays unchanged. Any other text becomes a readable form with a hash of
        the whole text: `Profile Analysis (v2)` -> `profile_analysis_v2-7c4a8d09`. So different
        texts get different filenames.
        """
        if _FILENAME.fullmatch(text) and not _MARKED.fullmatch(text):
            return text
        plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
        readable = re.sub(r"[^a-z0-9-]+", "_", plain).strip("_-") or "output"
        mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        return f"{readable[: _MAX_FILENAME_LENGTH - 9]}-{mark}"
