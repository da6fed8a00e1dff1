"""The `.env` file of a project's folder: the variables that its code reads."""

import logging
import os
from typing import Final

from dotenv import dotenv_values

from app.projects import Project
from app.settings import Settings

_logger = logging.getLogger("crew_capture.crews")

# The model is named by LLM_MODEL, the crew itself, or CREWS_FILE.
_MODEL_NAMES: Final = frozenset({"MODEL", "MODEL_NAME", "OPENAI_MODEL_NAME"})
# The placeholder for a key that `crewai create flow` writes.
_UNFILLED: Final = "YOUR_API_KEY"


def read_environment(project: Project) -> None:
    """Add the variables of the project's `.env` that the environment lacks, for its code only.

    Settings of the service are not for crews: a project's variable of the same name is its own.
    Names of models are never added.
    """
    file = project.folder / ".env"
    if not file.is_file():
        return
    settings = {name.upper() for name in Settings.model_fields}
    for name, value in dotenv_values(file).items():
        if not value or value == _UNFILLED or name in _MODEL_NAMES:
            continue
        if name in settings or os.environ.get(name, value) == value:
            project.environment[name] = value
        else:
            _logger.warning(
                "%s of the project %s is not used: the environment has another value",
                name,
                project.folder.name,
            )
