"""Real servers for tests, on free ports of 127.0.0.1, ended by their own process id."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

_READY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class S3Account:
    """How to reach an S3 server."""

    endpoint_url: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """What boto3's own credential chain reads."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class SeaweedFS:
    """A SeaweedFS server with an S3 gateway, its data in `directory`.

    `with SeaweedFS(directory) as server: server.account`. `kill` and `start` again on the same
    data and port are how an outage is played.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        s3, *self._ports = free_ports(8)
        self._s3_port = s3
        self.account = S3Account(f"http://127.0.0.1:{s3}", "test-key", "test-secret")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        config = self._directory / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "test",
                            "credentials": [
                                {
                                    "accessKey": self.account.access_key,
                                    "secretKey": self.account.secret_key,
                                }
                            ],
                            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
                        }
                    ]
                }
            )
        )
        master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3_grpc = self._ports
        command = [
            str(Path(sys.executable).with_name("weed")),
            "server",
            f"-dir={self._directory}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.volumeSizeLimitMB=64",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.max=20",
            "-volume.preStopSeconds=0",
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
            "-s3",
            f"-s3.port={self._s3_port}",
            f"-s3.port.grpc={s3_grpc}",
            f"-s3.config={config}",
        ]
        with (self._directory / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            assert self._process is not None
            if self._process.poll() is not None:
                break
            connection = http.client.HTTPConnection("127.0.0.1", self._s3_port, timeout=2)
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    return
            connection.close()
            time.sleep(0.1)
        self.kill()
        raise RuntimeError((self._directory / "weed.log").read_text()[-2000:])
