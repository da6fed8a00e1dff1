"""Servers that tests of several packages share, each started once, when first asked for."""

from collections.abc import Iterator

import pytest
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


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Account]:
    """A real S3 server."""
    with SeaweedFS(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server.account


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
