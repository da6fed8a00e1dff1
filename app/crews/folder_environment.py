"""The `.env` file of a project's folder, and the variables that it may add to the environment."""

import logging
import os
from pathlib import Path

from dotenv import dotenv_values

from app.settings import Settings

_logger = logging.getLogger("crew_capture.crews")

# The model is named by LLM_MODEL, the crew itself, or CREWS_FILE.
_MODEL_NAMES = frozenset({"MODEL", "MODEL_NAME", "OPENAI_MODEL_NAME"})
# The placeholder for a key that `crewai create flow` writes.
_UNFILLED = "YOUR_API_KEY"


def fill_environment(file: Path) -> None:
    """Add the variables of `file` that the environment lacks: keys that the project's tools need.

    Variables that are set are never changed. Settings of the service, credentials of AWS (where its
    outputs may be stored) and names of models are never added.
    """
    if not file.is_file():
        return
    reserved = {name.upper() for name in Settings.model_fields} | _MODEL_NAMES
    for name, value in dotenv_values(file).items():
        if not value or value == _UNFILLED or name in reserved or name.startswith("AWS_"):
            continue
        if os.environ.setdefault(name, value) != value:
            _logger.warning(
                "%s of the project %s is not used: the environment has another value",
                name,
                file.parent.name,
            )
