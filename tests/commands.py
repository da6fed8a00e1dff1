"""`crew-capture` in processes of its own: new ones, or forks of one that has CrewAI in memory.

An import of CrewAI costs seconds of CPU. The fork server pays it once in a session; each of its
forks is a process like any other, with its own id, folder, environment, log and signals.
"""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Protocol
from unittest import mock

import pytest

from app.settings import Settings

RunCommand = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[1]
# `app.engine.engine` imports CrewAI; the commands do so only when they run a crew.
_PRELOADED = [
    "pytest",
    "app.cli.serve",
    "app.cli.run",
    "app.cli.doctor",
    "app.asgi",
    "app.engine.engine",
    "alembic.command",
    "lance_namespace_urllib3_client",  # most of lancedb, which itself starts a thread
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "uvicorn.protocols.http.httptools_impl",
    "tests.preloaded",
]


class Command(Protocol):
    """A command that runs, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Launch(Protocol):
    """Starts `python -m MODULE WORDS` in a folder, with this environment and no other.

    What it prints is appended to `output`, what it logs to `errors`, which may be the same.
    """

    def __call__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: Path,
        errors: Path,
    ) -> Command: ...


def launch(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Path,
    errors: Path,
) -> Command:
    """A new process, as an operator starts it."""
    with output.open("ab") as stdout, errors.open("ab") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )


class ForkServer:
    """Starts commands as forks of one process that has imported the service."""

    def __init__(self) -> None:
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_PRELOADED)
        # It imports before it gets to know the path of this process.
        with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
            forkserver.ensure_running()

    def launch(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        output: Path,
        errors: Path,
    ) -> Command:
        """The same as `launch`, seconds sooner."""
        for file in (output, errors):
            file.touch()  # it may be read before the fork opens it
        process = self._context.Process(
            target=_run, args=([*arguments], folder, dict(environment), output, errors)
        )
        process.start()
        return _Fork(process)


class _Fork:
    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        assert process.pid is not None
        self.pid: int = process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("a fork", timeout or 0.0)
        return code

    def send_signal(self, sig: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


def _run(
    arguments: list[str], folder: Path, environment: dict[str, str], output: Path, errors: Path
) -> None:
    """A fork's whole life."""
    # Tests that are started in the background of a shell ignore it, and so do their processes.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    of_crewai = {name: value for name, value in os.environ.items() if name.startswith("CREWAI_")}
    os.environ.clear()
    os.environ.update(of_crewai | environment)  # what its import has set stays, as anywhere
    os.chdir(folder)
    sys.path[0] = str(folder)
    sys.argv = arguments
    for path, stream in ((output, sys.stdout), (errors, sys.stderr)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), stream.fileno())
    if "PYTHONFAULTHANDLER" in environment:
        faulthandler.enable()

    import uvicorn._subprocess

    # The serving processes of a supervisor are forks, too. tests/cli/test_supervisor.py has them
    # started anew.
    uvicorn._subprocess.spawn = multiprocessing.get_context("fork")  # type: ignore[assignment]
    # Its isolated processes are forks of the same server.
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def run(
    start: Launch, words: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a `crew-capture` command to its end; what it printed and logged."""
    with tempfile.TemporaryDirectory(prefix="crew-capture-streams-") as streams:
        output, errors = Path(streams) / "output", Path(streams) / "errors"
        command = start(["app.cli", *words], folder, environment, output, errors)
        try:
            code = command.wait(120)
        finally:
            command.kill()
        return subprocess.CompletedProcess(
            list(words), code, output.read_text(), errors.read_text()
        )


@pytest.fixture(scope="session")
def fork_server() -> ForkServer:
    """Starts commands without an import of CrewAI for each."""
    return ForkServer()


def _isolated(start: Launch, folder: Path) -> RunCommand:
    """Runs commands with settings that keep them in a folder, and none of this process's own."""
    settings = {name.upper() for name in Settings.model_fields}
    others = {name: value for name, value in os.environ.items() if name not in settings}

    def run_command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return run(start, words, folder, others | {"TEMP_DIR": str(folder)} | environment)

    return run_command


@pytest.fixture
def crew_capture(fork_server: ForkServer, tmp_path: Path) -> RunCommand:
    """Runs a command in the test's folder: `crew_capture("run", "--json", LLM_MODEL="offline")`."""
    return _isolated(fork_server.launch, tmp_path)


@pytest.fixture
def new_crew_capture(tmp_path: Path) -> RunCommand:
    """The same by new processes, which import CrewAI anew."""
    return _isolated(launch, tmp_path)


def run_python(code: str, folder: Path, **environment: str) -> str:
    """The output of code in a process of its own, which must succeed.

    It has this environment and no other.
    """
    own = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**own, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
