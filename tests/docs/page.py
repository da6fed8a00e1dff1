"""Runs a page of the documents: its commands, in their order, in a folder of their own.

`crew-capture` is a fork of a process that has CrewAI in memory. `crew-capture serve` returns when
the service is ready, and the service lasts until the page's end. RUN_ID, KEY and KEY_ID stand for
the run and the key that the page has made last.
"""

import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from urllib.error import URLError

from app.settings import Settings
from tests.commands import Command, ForkServer
from tests.servers import free_ports

ROOT: Final = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MADE: Final = {
    "RUN_ID": re.compile(r'"(?:run_id|kickoff_id)":\s?"([0-9a-f-]{36})"'),
    "KEY": re.compile(r"\bcc_[0-9a-f]+_[\w-]+"),
    "KEY_ID": re.compile(r"\bcc_([0-9a-f]+)_"),
}
_BLOCK_SECONDS = 120
_START_SECONDS = 60


@dataclass(frozen=True)
class Block:
    """A block of code in a page, with its language."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in their order."""
    return [Block(*found) for found in _BLOCK.findall(page.read_text())]


class PageShell:
    """Where the commands of one page run; ends what they have started."""

    def __init__(
        self,
        folder: Path,
        fork_server: ForkServer,
        environment: Mapping[str, str],
        names: Mapping[str, str],
    ) -> None:
        """`names` are names in the texts, of servers and the like, with what they are here."""
        self._names = names
        self._folder = folder
        self._fork_server = fork_server
        (self._port,) = free_ports(1)
        self._services: list[Command] = []
        self._made: dict[str, str] = {}
        self._listener = Listener(str(folder / "commands.socket"))
        self._answering = threading.Thread(target=self._answer, daemon=True)
        settings = {name.upper() for name in Settings.model_fields}
        others = {name: value for name, value in os.environ.items() if name not in settings}
        self._environment = {
            **others,
            "HOME": str(folder),
            "PATH": f"{self._write_commands()}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
            "COMMANDS": str(folder / "commands.socket"),
            **environment,
        }

    def __enter__(self) -> Self:
        (self._folder / ".venv/bin/activate").touch()
        (self._folder / "examples").symlink_to(ROOT / "examples")
        self._answering.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_services()
        self._listener.close()

    def run(self, block: Block) -> str:
        """Run a block to its end; returns what it printed. Fails if it fails."""
        text = self._here(block.text)
        words = ["bash", "-euo", "pipefail", "-c", text]
        if block.language == "python":
            words = [sys.executable, "-c", text]
        done = subprocess.run(
            words,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_BLOCK_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}{self._log()}"
        for name, pattern in _MADE.items():
            if found := pattern.findall(done.stdout):
                self._made[name] = found[-1]
        return done.stdout

    def _here(self, text: str) -> str:
        """The text for this page's service, with the run and the key that earlier blocks made."""
        needs_run = "RUN_ID" in text and "RUN_ID" not in self._made
        if not self._services and (needs_run or "127.0.0.1:8000" in text):
            self._serve({})
        if needs_run:
            self._made["RUN_ID"] = self._submit()
        names = {**self._names, **self._made, "127.0.0.1:8000": f"127.0.0.1:{self._port}"}
        pattern = "|".join(rf"\$?{re.escape(name)}" for name in names)
        return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", lambda m: names[m[0].lstrip("$")], text)

    def _submit(self) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/api/runs",
            json.dumps({"crew": "idea", "inputs": {}}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            run_id: str = json.load(response)["run_id"]
        return run_id

    def _write_commands(self) -> Path:
        """The commands that the pages name, in the folder that a checkout has them in."""
        folder = self._folder / ".venv" / "bin"
        folder.mkdir(parents=True)
        for name in ("crew-capture", "make"):
            _write(folder / name, f"#!{sys.executable} -IS\n{_FORWARD}")
        _write(folder / "curl", '#!/bin/sh\nexec /usr/bin/curl --fail-with-body "$@"\n')
        for name in ("python", "crewai"):
            (folder / name).symlink_to(Path(sys.executable).parent / name)
        return folder

    def _answer(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._execute, args=(connection,), daemon=True).start()

    def _execute(self, connection: Connection) -> None:
        words, folder, environment = connection.recv()
        program, *arguments = words
        if program == "make":  # each command of the pages is one of crew-capture, too
            environment |= dict(word.split("=", 1) for word in arguments if "=" in word)
            arguments = [word for word in arguments if "=" not in word]
        if arguments[:1] == ["serve"]:
            connection.send((0, self._serve(environment), ""))
            return
        output, errors = (self._folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        command = self._fork_server.launch(
            ["app.cli", *arguments], Path(folder), environment, output, errors
        )
        code = command.wait(_BLOCK_SECONDS)
        connection.send((code, output.read_text(), errors.read_text()))

    def _serve(self, environment: Mapping[str, str]) -> str:
        """Start a service instead of the one before; ready when this returns."""
        self._stop_services()
        log = self._folder / "service.log"
        service = self._fork_server.launch(
            ["app.cli", "serve"],
            self._folder,
            {**self._environment, **environment, "PORT": str(self._port)},
            log,
            log,
        )
        self._services.append(service)
        ready = f"http://127.0.0.1:{self._port}/health/ready"
        end = time.monotonic() + _START_SECONDS
        while service.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(ready):
                    return "The service is ready.\n"
            except URLError:
                time.sleep(0.05)
        raise AssertionError(f"the service did not start: {self._log()}")

    def _stop_services(self) -> None:
        for service in self._services:
            service.terminate()
            service.wait(30)
        self._services.clear()

    def _log(self) -> str:
        log = self._folder / "service.log"
        return log.read_text()[-2000:] if log.exists() else ""


# Of a command in a shell: the page's test executes it.
_FORWARD = """
import os, sys
from multiprocessing.connection import Client
with Client(os.environ["COMMANDS"]) as connection:
    name = os.path.basename(sys.argv[0])
    connection.send(([name, *sys.argv[1:]], os.getcwd(), dict(os.environ)))
    code, output, errors = connection.recv()
sys.stdout.write(output)
sys.stderr.write(errors)
sys.exit(code)
"""


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
