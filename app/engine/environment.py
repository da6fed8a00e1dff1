"""What must stand in the environment before CrewAI is imported."""

import os
import tempfile
from pathlib import Path


def prepare_environment() -> None:
    """Make CrewAI fit for a server: nothing sent home, nothing asked, nothing left behind.

    CrewAI reads these once, while it is being imported. Values that are already set stay, except
    those that would have it ask questions on the terminal or send telemetry.
    """
    os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
    # "false", not unset: only an explicit value keeps CrewAI from collecting traces.
    os.environ["CREWAI_TRACING_ENABLED"] = "false"
    # CrewAI's word for "nobody is there to be asked": else the first run offers to share traces.
    os.environ["CREWAI_TESTING"] = "true"
    # The console formatter would ask the package index for the newest version.
    os.environ["CREWAI_DISABLE_VERSION_CHECK"] = "true"
    # An absolute path is taken as it stands; a bare name would land in the home directory.
    storage = Path(tempfile.gettempdir()) / f"crew_capture_crewai_{os.getuid()}"
    os.environ.setdefault("CREWAI_STORAGE_DIR", str(storage))
