"""Servers that tests of several packages share, each started once, when a test first needs it."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from tests.servers import S3Account, SeaweedFS

pytest_plugins = [
    "tests.api.crews",
    "tests.commands",
    "tests.crews.projects",
    "tests.databases",
    "tests.serving",
]

# How long an example takes says more about the machine than about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


_SERVERS = {
    "crew_capture",
    "fork_server",
    "moto_s3",
    "new_crew_capture",
    "postgresql",
    "seaweedfs",
    "serve",
    "supervisor",
}
# The backends of tests/storage and the databases that a test's parameter names.
_SERVERS_BY_PARAMETER = re.compile(r"postgresql|\b(s3|obstore)\b")
_SESSION_FOLDER = "CREW_CAPTURE_TESTS"


def pytest_configure(config: pytest.Config) -> None:
    """The first process of a session makes the folder that its others find in the environment."""
    if _is_first(config):
        os.environ[_SESSION_FOLDER] = tempfile.mkdtemp(prefix="crew-capture-tests-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the servers that no process of the session needs any more."""
    if _is_first(config) and (name := os.environ.pop(_SESSION_FOLDER, None)):
        folder = Path(name)
        for file in folder.glob("*.pid"):
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(file.read_text())).kill()
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out."""
    for item in items:
        assert isinstance(item, pytest.Function)
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if not _SERVERS.isdisjoint(item.fixturenames) or any(
            isinstance(value, str) and _SERVERS_BY_PARAMETER.search(value) for value in values
        ):
            item.add_marker("servers")


def _is_first(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")  # which pytest-xdist's other processes have


@pytest.fixture(scope="session")
def session_folder() -> Path:
    """A folder that all processes of the session share; it is removed at the session's end.

    It is not in pytest's own: PostgreSQL runs as another user where tests run as root, and any
    later pytest of this machine would take that folder's rights from it.
    """
    return Path(os.environ[_SESSION_FOLDER])


@pytest.fixture(scope="session")
def seaweedfs(session_folder: Path) -> S3Account:
    """A real S3 server, which all processes of the session share."""
    account = session_folder / "seaweedfs.json"
    with FileLock(session_folder / "seaweedfs.lock"):
        if not account.exists():
            server = SeaweedFS(session_folder / "seaweedfs")
            server.start()
            (session_folder / "seaweedfs.pid").write_text(str(server.pid))
            account.write_text(json.dumps(asdict(server.account)))
    return S3Account(**json.loads(account.read_text()))


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Account]:
    """A simulated S3 server."""
    from moto.s3.models import FakeKey
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        # When an object is written over, moto closes the old one, though another request may be at
        # it, which then fails. The garbage collector closes it in time.
        patch.setattr(FakeKey, "dispose", lambda *_, **__: None)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        _, port = server.get_host_and_port()
        yield S3Account(f"http://127.0.0.1:{port}", "test-key", "test-secret")
        server.stop()
