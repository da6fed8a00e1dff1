"""Real servers for tests, on free ports of 127.0.0.1, ended by their own process id."""

import http.client
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import boto3
import nats

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

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

    def client(self) -> "S3Client":
        """A client of the server, whatever the environment has."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different.

    They are below those that the system gives to outgoing connections, so that no client of a
    parallel test is on one before its server is.
    """
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            port = random.randrange(10_000, 32_000)
            with suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports


class _Server:
    """A server process. `kill` and `start` again are how an outage is played."""

    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """The id of its process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """Ends the server at once, as a crash would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


class SeaweedFS(_Server):
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
            # Other gateways of its own have fixed ports: two servers at once would collide.
            "-s3.port.lance=0",
            "-s3.port.iceberg=0",
            f"-s3.config={config}",
        ]
        with (self._directory / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ
            )
        self._wait_until_ready()

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


class UnreliableProxy:
    """Stands between a client and a server, and behaves as `mode` says.

    pass: forwards. slow: forwards after `delay_seconds`. silent: takes requests, never answers.
    unavailable: answers each request with 503 SlowDown. cut: ends each answer after `cut_after`
    bytes. refuse: resets connections. Changing the mode drops the open connections; `requests`
    counts those that came in, in all modes but refuse.
    """

    def __init__(self, endpoint_url: str) -> None:
        url = urlsplit(endpoint_url)
        self._target = url.hostname, url.port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_seconds = 0.0
        self.cut_after = 2000
        self.requests = 0
        self._mode = "pass"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        threading.Thread(target=self._accept, daemon=True, name="proxy").start()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = threading.Event()
        self._drop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.mode = "refuse"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True, name="proxy").start()

    def _serve(self, client: socket.socket) -> None:
        mode, changed = self._mode, self._changed
        with client, self._kept(client), suppress(OSError):
            if mode == "refuse":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            if mode in {"pass", "slow", "cut"}:
                with socket.create_connection(self._target) as server, self._kept(server):
                    back = threading.Thread(
                        target=self._pump, args=(server, client, mode, changed), daemon=True
                    )
                    back.start()
                    self._pump(client, server, "pass", changed)
                    back.join()
                return
            while client.recv(65536):
                self.requests += 1
                if mode == "silent":
                    changed.wait()
                    return
                client.sendall(_SLOW_DOWN)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):  # closing with bytes unread would reset the connection
                    pass
                return

    def _pump(
        self, source: socket.socket, sink: socket.socket, mode: str, changed: threading.Event
    ) -> None:
        sent = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if sink.getpeername() == self._target:
                    self.requests += data.count(b" HTTP/1.1\r\n")
                if mode == "slow" and changed.wait(self.delay_seconds):
                    break
                if mode == "cut" and sent + len(data) > self.cut_after:
                    sink.sendall(data[: self.cut_after - sent])
                    break
                sink.sendall(data)
                sent += len(data)
        for side in (source, sink):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _kept(self, one: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(one)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(one)

    def _drop_all(self) -> None:
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 67\r\n\r\n<Error><Code>SlowDown</Code><Message>Reduce rate.</Message></Error>"
)


_CLUSTER_SIZE = 3


class NatsServer(_Server):
    """A NATS server with JetStream, its streams in `directory`.

    `kill` and `start` again on the same port are how an outage is played; `forget` loses its disk.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.url = f"nats://127.0.0.1:{self.port}"
        self._options = options

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("nats-server"))]
        command += ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._directory)]
        with self._directory.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *self._options], stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 2) as client:
                if client.recv(5) == b"INFO ":
                    return
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(self._directory.with_suffix(".log").read_text()[-2000:])

    @property
    def name(self) -> str:
        """The name of its directory, and of the server in a cluster."""
        return self._directory.name

    def forget(self) -> None:
        """Loses what the server, which does not run, has stored."""
        shutil.rmtree(self._directory)
        self._directory.mkdir()


class NatsCluster:
    """Three NATS servers with JetStream, which replicate their streams."""

    def __init__(self, directory: Path) -> None:
        ports = free_ports(_CLUSTER_SIZE)
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.servers = [
            NatsServer(
                directory / f"server-{port}",
                *("--cluster_name", "tests", "--server_name", f"server-{port}"),
                *("--cluster", f"nats://127.0.0.1:{port}", "--routes", routes),
            )
            for port in ports
        ]
        self.url = "nats://" + ",".join(f"127.0.0.1:{one.port}" for one in self.servers)

    def __enter__(self) -> Self:
        for server in self.servers:
            server.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for server in self.servers:
            server.kill()

    async def follower(self) -> NatsServer:
        """A server that does not lead the only stream."""
        leader = await self.leader()
        return next(one for one in self.servers if one is not leader)

    async def leader(self) -> NatsServer:
        """The server that leads the only stream."""
        client = await nats.connect([f"nats://127.0.0.1:{one.port}" for one in self.servers])
        try:
            (stream,) = await client.jetstream().streams_info()
            assert stream.cluster is not None
            (leader,) = [one for one in self.servers if one.name == stream.cluster.leader]
            return leader
        finally:
            await client.close()
