"""Parses the YAML files of `@CrewBase` classes once per content.

CrewAI parses them for each instance of the class, that is for each run of the crew. PyYAML needs
several milliseconds for the two files of a small crew, more than CrewAI for the rest of it.
"""

from copy import deepcopy
from functools import lru_cache
from typing import IO, Any, Final

import yaml
from crewai.project import crew_base

_MAX_FILES: Final = 256


@lru_cache(_MAX_FILES)
def _parsed(text: str) -> Any:
    return yaml.safe_load(text)


class _Yaml:
    @staticmethod
    def safe_load(file: IO[str]) -> Any:
        """The content of a file; a new one for each caller, since CrewAI changes it."""
        return deepcopy(_parsed(file.read()))


PARSED_ONCE: Final[tuple[tuple[Any, str, Any], ...]] = ((crew_base, "yaml", _Yaml),)
"""The parser that CrewAI's `load_yaml` uses, and its replacement."""
