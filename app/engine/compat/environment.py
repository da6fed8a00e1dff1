"""The environment that CrewAI needs before it is imported."""

import os
import sys
import tempfile
from importlib.abc import MetaPathFinder
from pathlib import Path


def prepare_environment() -> None:
    """Configure CrewAI for a server: no telemetry, no prompts, no files in the home directory.

    CrewAI reads these variables once, while it is imported. Its own files go to a folder in the
    system's temporary directory, unless CREWAI_STORAGE_DIR names another.
    """
    os.environ["CREWAI_DISABLE_TELEMETRY"] = "true"
    # "false", not unset: only an explicit value keeps CrewAI from collecting traces.
    os.environ["CREWAI_TRACING_ENABLED"] = "false"
    # Without it, the first run prompts on the terminal for permission to share traces.
    os.environ["CREWAI_TESTING"] = "true"
    # The console formatter would query the package index for the newest version.
    os.environ["CREWAI_DISABLE_VERSION_CHECK"] = "true"
    # CrewAI uses an absolute path unchanged and puts a bare name into the home directory.
    default = Path(tempfile.gettempdir()) / f"crew_capture_crewai_{os.getuid()}"
    storage = Path(os.environ.setdefault("CREWAI_STORAGE_DIR", str(default)))
    sys.meta_path.insert(0, _BeforeCrewAI(storage))


class _BeforeCrewAI(MetaPathFinder):
    """Finds no module; the first import of CrewAI calls it before it begins.

    The part of CrewAI that is configured then needs megabytes, also where no crew runs.
    """

    def __init__(self, storage: Path) -> None:
        self._storage = storage

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "crewai" and self in sys.meta_path:
            sys.meta_path.remove(self)
            _keep_out_of_home(self._storage)


def _keep_out_of_home(storage: Path) -> None:
    """CrewAI's import creates a settings file and a key: keep them out of the home directory."""
    from crewai_core import settings  # noqa: PLC0415
    from crewai_core.token_manager import TokenManager  # noqa: PLC0415

    def credentials() -> Path:
        folder = storage / "credentials"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    settings.DEFAULT_CONFIG_PATH = storage / "settings.json"
    credentials.__wrapped__ = TokenManager._get_secure_storage_path  # type: ignore[attr-defined]
    TokenManager._get_secure_storage_path = staticmethod(credentials)  # type: ignore[method-assign]
