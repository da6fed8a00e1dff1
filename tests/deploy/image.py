"""Builds the image with buildah, and runs a crew from its files as `deploy/compose.yaml` says.

    python -m tests.deploy.image [--base IMAGE] [--folder FOLDER]

Needs root, buildah and bubblewrap. Without `--base`, the base is made by debootstrap from
Debian 12, whose Python is 3.11, and is kept in the folder for the next time. The services see the
image's files as their root file system, which is read-only, and one tmpfs. PostgreSQL, NATS and the
S3 server are those of the development packages.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import requests
import yaml

from tests.databases import PostgreSQL
from tests.servers import NatsServer, SeaweedFS, free_ports

ROOT = Path(__file__).parents[2]
IMAGE = "localhost/crew-capture"
_BASE = "localhost/python:3.11-debian"
_SOCKETS = "/tmp/postgresql"  # noqa: S108 - within the sandbox
_READY_SECONDS = 120.0
_COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())


class Buildah:
    """buildah with images and containers of its own, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        state = [f"--root={folder / 'images'}", f"--runroot={folder / 'run'}"]
        self._command = ["buildah", "--storage-driver=vfs", *state]

    def __call__(self, *arguments: str) -> str:
        """Run a command; its output."""
        done = subprocess.run(
            [*self._command, *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
        )
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether it has an image."""
        return image in self("images", "--format={{.Name}}:{{.Tag}}").splitlines()

    def make_base(self) -> None:
        """Make the base image from Debian's packages."""
        with tempfile.TemporaryDirectory(dir=self._folder) as files:
            packages = "--include=python3-venv,ca-certificates"
            command = ["debootstrap", "--variant=minbase", packages, "bookworm", files]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for archive in Path(files).glob("var/cache/apt/archives/*.deb"):
                archive.unlink()
            with self.container("scratch") as container:
                self("add", container, files, "/")
                self("commit", container, _BASE)

    def build(self, base: str) -> None:
        """Build the image from the Dockerfile."""
        # The authorities that this machine trusts: the package index may have one of its own.
        trusted = "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"
        options = ["--format=docker", "--network=host", trusted, f"--build-arg=BASE={base}"]
        dockerfile = f"--file={ROOT / 'deploy/Dockerfile'}"
        self("build", *options, dockerfile, f"--tag={IMAGE}", str(ROOT))

    def configuration(self) -> dict[str, Any]:
        """What the image says about its processes."""
        inspected = json.loads(self("inspect", "--type=image", IMAGE))
        configuration = inspected["Docker"]["config"]
        assert isinstance(configuration, dict)
        return configuration

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        """A container of an image; removed at the end of the block."""
        container = self("from", "--pull-never", image)
        try:
            yield container
        finally:
            self("rm", container)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Runs commands as a container of the image would, and on the network of this machine."""

    files: Path
    configuration: Mapping[str, Any]
    settings: Mapping[str, str]
    socket: Path
    """PostgreSQL's socket, which processes see in the folder _SOCKETS."""

    def command(self, words: Sequence[str], **settings: str) -> list[str]:
        """The command line."""
        (tmpfs,) = _COMPOSE["services"]["worker"]["tmpfs"]
        user = self.configuration["User"]
        own = dict(entry.split("=", 1) for entry in self.configuration["Env"])
        return [
            *("bwrap", "--ro-bind", str(self.files), "/", "--proc", "/proc", "--dev", "/dev"),
            *("--perms", "1777", "--tmpfs", tmpfs),
            *(
                "--perms",
                "0755",
                "--dir",
                _SOCKETS,
                "--bind",
                str(self.socket),
                f"{_SOCKETS}/{self.socket.name}",
            ),
            *("--unshare-pid", "--die-with-parent", "--clearenv"),
            *("--chdir", self.configuration["WorkingDir"]),
            *(
                word
                for name, value in {**own, **self.settings, **settings}.items()
                for word in ("--setenv", name, value)
            ),
            *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *words),
        ]

    def run(self, *words: str, **settings: str) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(
            self.command(words, **settings), check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.strip()

    @contextmanager
    def serving(self, role: str, port: int, log: Path) -> Iterator[None]:
        """A service of the composition, which is ready and passes the image's health check."""
        command = _COMPOSE["services"][role]["command"]
        own = {"PORT": str(port), "METRICS_PORT": str(free_ports(1)[0])}
        words = [*self.configuration["Entrypoint"], *command]
        with (
            log.open("wb") as output,
            subprocess.Popen(self.command(words, **own), stdout=output, stderr=output) as process,
        ):
            try:
                _wait_until_ready(port, process, log)
                kind, *check = self.configuration["Healthcheck"]["Test"]
                assert kind == "CMD"
                self.run(*check, **own)
                yield
            finally:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(log.read_text()[-4000:])


def _settings(replaced: Mapping[str, str]) -> dict[str, str]:
    """The settings of the composition, with what the composition leaves to its environment."""
    environment: dict[str, str] = _COMPOSE["services"]["worker"]["environment"]
    filled = {
        name: re.sub(r"\$\{\w+:-(\w*)\}", r"\1", value) for name, value in environment.items()
    }
    settings = {**filled, **replaced}
    assert not [value for value in settings.values() if "${" in value]
    return settings


def _post_run(port: int, **headers: str) -> requests.Response:
    """Run the idea crew, and wait for its reports."""
    body = {"experience_summary": "A baker for ten years."}
    url = f"http://127.0.0.1:{port}/api/run"
    return requests.post(url, json=body, headers=headers, timeout=60)


def check(buildah: Buildah, folder: Path) -> None:
    """Start the services of the composition from the image's files, and run a crew on them."""
    configuration = buildah.configuration()
    with ExitStack() as stack:
        container = stack.enter_context(buildah.container(IMAGE))
        files = Path(buildah("mount", container))
        stack.callback(buildah, "umount", container)
        postgresql = stack.enter_context(PostgreSQL(folder))
        nats = stack.enter_context(NatsServer(folder / "streams"))
        s3 = stack.enter_context(SeaweedFS(folder / "objects")).account
        socket = folder / "data/.s.PGSQL.5432"
        replaced = {
            "DATABASE_URL": postgresql.create_database().replace(str(socket.parent), _SOCKETS),
            "QUEUE_URL": nats.url,
            "S3_ENDPOINT_URL": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": s3.access_key,
            "AWS_SECRET_ACCESS_KEY": s3.secret_key,
            "HOST": "127.0.0.1",
        }
        sandbox = Sandbox(files, configuration, _settings(replaced), socket)
        _make_bucket(sandbox.settings)
        who = sandbox.run("id", "-u")
        assert who == configuration["User"] != "0", who
        for read_only in ("/", "/opt/crew-capture", configuration["WorkingDir"]):
            written = sandbox.run("sh", "-c", f"touch {read_only}/x 2>&1 || true")
            assert written.endswith("Read-only file system"), written
        print(sandbox.run("crew-capture", "migrate"), flush=True)
        key = sandbox.run("crew-capture", "keys", "create", "check")
        accepting, worker = free_ports(2)
        with (
            sandbox.serving("worker", worker, folder / "worker.log"),
            sandbox.serving("accepting", accepting, folder / "accepting.log"),
        ):
            assert _post_run(accepting).status_code == 401
            answer = _post_run(accepting, Authorization=f"Bearer {key}")
            assert answer.status_code == 200, answer.text
        for name, report in answer.json()["outputs"].items():
            assert report.strip(), name
            print(f"{name}: {report.strip().splitlines()[0]}", flush=True)


def _make_bucket(settings: Mapping[str, str]) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=settings["S3_ENDPOINT_URL"],
        region_name=settings["S3_REGION"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket=settings["S3_BUCKET"])


def main() -> int:
    """Build and check the image; 0 if all is right."""
    options = argparse.ArgumentParser(description="Build the image, and run a crew from its files.")
    options.add_argument("--base", help="the base image, instead of one from Debian's packages")
    options.add_argument("--folder", type=Path, default=Path("/var/tmp/crew-capture-image"))  # noqa: S108
    chosen = options.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(chosen.folder)
    if chosen.base is None and not buildah.has(_BASE):
        buildah.make_base()
    buildah.build(chosen.base or _BASE)
    with tempfile.TemporaryDirectory(prefix="crew-capture-image-") as folder:
        check(buildah, Path(folder))
    print(f"{IMAGE}: built, and it ran a crew with its root file system read-only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
