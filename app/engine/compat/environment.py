"""What must stand in the environment before CrewAI is imported."""

import os
import tempfile
from pathlib import Path


def prepare_environment() -> None:
    """Make CrewAI fit for a server: nothing sent home, nothing asked, nothing left behind.

    CrewAI reads these once, while it is being imported. What it keeps for itself goes to a folder
    in the system's temporary directory, unless CREWAI_STORAGE_DIR names another.
    """
    os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
    # "false", not unset: only an explicit value keeps CrewAI from collecting traces.
    os.environ["CREWAI_TRACING_ENABLED"] = "false"
    # CrewAI's word for "nobody is there to be asked": else the first run offers to share traces.
    os.environ["CREWAI_TESTING"] = "true"
    # The console formatter would ask the package index for the newest version.
    os.environ["CREWAI_DISABLE_VERSION_CHECK"] = "true"
    # An absolute path is taken as it stands; a bare name would land in the home directory.
    default = Path(tempfile.gettempdir()) / f"crew_capture_crewai_{os.getuid()}"
    storage = Path(os.environ.setdefault("CREWAI_STORAGE_DIR", str(default)))
    _keep_out_of_home(storage)


def _keep_out_of_home(storage: Path) -> None:
    """CrewAI's import makes a settings file and a key in the home directory: put them aside."""
    from crewai_core import settings  # noqa: PLC0415
    from crewai_core.token_manager import TokenManager  # noqa: PLC0415

    def credentials() -> Path:
        folder = storage / "credentials"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    settings.DEFAULT_CONFIG_PATH = storage / "settings.json"
    credentials.__wrapped__ = TokenManager._get_secure_storage_path  # type: ignore[attr-defined]
    TokenManager._get_secure_storage_path = staticmethod(credentials)  # type: ignore[method-assign]
