"""One process that accepts runs and workers, over PostgreSQL and NATS, as on several machines.

    python -m tests.load.machines_service --workers 2

Settings are Crew Capture's own, without those of the database and the queue. With `--tool`, the
workers have the idea crew of `tests.load.tool_service`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

from tests.databases import PostgreSQL
from tests.load.services import free_port
from tests.servers import NatsServer


def main() -> None:
    """Serve until a stop signal, or until a process ends."""
    options = argparse.ArgumentParser(description="A process that accepts runs, and workers.")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--tool", action="store_true")
    chosen = options.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    worker = ["tests.load.tool_service", "--worker"] if chosen.tool else ["app.cli", "worker"]
    with (
        tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as folder,
        NatsServer(Path(folder) / "streams") as nats,
        PostgreSQL(Path(folder)) as server,
    ):
        shared = {"DATABASE_URL": server.create_database(), "QUEUE_URL": nats.url}
        ports = [free_port() for _ in range(chosen.workers)]
        processes = [_start(worker, shared | {"PORT": str(port)}) for port in ports]
        # Last, so that the service answers once it has workers.
        for port, process in zip(ports, processes, strict=True):
            _wait_until_ready(port, process)
        processes.append(_start(["app.cli", "serve", "--accept-only"], shared))
        while all(process.poll() is None for process in processes) and not stopping.wait(0.1):
            pass
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5):
            return
        time.sleep(0.1)


def _start(module: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", *module], env=os.environ | environment)


if __name__ == "__main__":
    main()
