"""The metadata of a run: the client's own names and texts, to find the run by."""

import re
from collections.abc import Mapping
from typing import Final

from app.runs.errors import InvalidInput
from app.runs.inputs import clean_text

_MAX_KEYS: Final = 16
_MAX_KEY_CHARACTERS: Final = 40
_MAX_VALUE_CHARACTERS: Final = 500

METADATA_LIMITS: Final = (
    f"At most {_MAX_KEYS} keys, each of 1 to {_MAX_KEY_CHARACTERS} letters (a-z, A-Z), digits, "
    f"underscores, dots or hyphens; values have at most {_MAX_VALUE_CHARACTERS} characters."
)
"""The limits, for descriptions."""

_KEY = re.compile(rf"[A-Za-z0-9_.-]{{1,{_MAX_KEY_CHARACTERS}}}")


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata as it is stored, with newlines as line ends.

    Raises InvalidInput; its field is `metadata`, or `metadata.KEY` for one value.
    """
    if len(metadata) > _MAX_KEYS:
        raise InvalidInput("metadata", f"{len(metadata)} keys; at most {_MAX_KEYS} are allowed")
    for key in metadata:
        if not _KEY.fullmatch(key):
            shown = key[:_MAX_KEY_CHARACTERS].encode("ascii", "backslashreplace").decode()
            raise InvalidInput(
                "metadata",
                f"the key {shown!r} is not allowed; a key has 1 to {_MAX_KEY_CHARACTERS} "
                "letters (a-z, A-Z), digits, underscores, dots or hyphens",
            )
    return {
        key: clean_text(value, f"metadata.{key}", _MAX_VALUE_CHARACTERS)
        for key, value in metadata.items()
    }
