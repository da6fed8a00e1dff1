"""`crew-capture worker`, and the command that drains it."""

import os
import re
from pathlib import Path

from tests.commands import ForkServer, RunCommand
from tests.runs.scripted import until


async def test_a_drained_worker_ends(
    fork_server: ForkServer, crew_capture: RunCommand, tmp_path: Path
) -> None:
    settings = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/runs.db",
        "TEMP_DIR": str(tmp_path),
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
    }
    log = tmp_path / "log"
    worker = fork_server.launch(["app.cli", "worker", "--port", "0"], tmp_path, settings, log, log)
    try:

        async def is_serving() -> bool:
            return "Serving on" in log.read_text()

        await until(is_serving, 60)

        def workers(*words: str) -> str:
            ran = crew_capture("workers", *words, DATABASE_URL=settings["DATABASE_URL"])
            assert ran.returncode == 0, ran.stderr
            return ran.stdout

        async def is_listed() -> bool:
            return str(worker.pid) in workers()

        await until(is_listed, 30)
        found = re.search(rf"^(\S+)\s+{worker.pid}\s", workers(), re.MULTILINE)
        assert found is not None
        assert "it ends once its runs have ended" in workers("drain", found[1])
        worker.wait(30)
        assert "An operator drains this worker" in log.read_text()
        assert workers().count("\n") == 1  # the heading
    finally:
        worker.kill()
