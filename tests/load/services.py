"""The services under load: each a process of its own that is started, measured and stopped."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.commands import Command, Launch, launch

ROOT = Path(__file__).parents[2]
_START_SECONDS = 120.0
_SAMPLE_SECONDS = 0.05

Start = Callable[[int, str, Path], "tuple[list[str], dict[str, str]]"]
"""Takes a port, the model's base URL and a folder; gives a module with its arguments, and the
environment."""


@dataclass(frozen=True)
class Service:
    """Something to drive: how to start it, and what is known about it.

    Each of its `processes` logs `says` when it has started; a service that doesn't is not the one
    that the table names. `keeps_rows`: it is a Crew Capture, whose runs can be looked at.
    `outputs_in_ram`: they are files below `/dev/shm`, while its database is on disk. Runs of a
    `crew` other than the idea crew keep their outputs.
    """

    name: str
    start: Start
    keeps_rows: bool = False
    says: str = ""
    processes: int = 1
    model_calls_per_run: int = 3
    outputs_in_ram: bool = False
    crew: str = "idea"


@dataclass(frozen=True)
class Deployment:
    """A service that runs, with its own model server; both end with the bench."""

    process: Process
    url: str
    model_url: str
    folder: Path


def limit(port: int, model_url: str, _: Path) -> tuple[list[str], dict[str, str]]:
    arguments = ["--port", str(port), "--model", model_url]
    return ["tests.load.limit_service", *arguments], {}


def stock(way: str) -> Start:
    def command(port: int, model_url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        arguments = ["--port", str(port), "--way", way]
        environment = {
            "MODEL": "openai/stub-model",
            "OPENAI_BASE_URL": model_url,
            "OPENAI_API_KEY": "none",
            "CREWAI_DISABLE_TELEMETRY": "true",
            "CREWAI_TRACING_ENABLED": "false",
            "CREWAI_TESTING": "true",
            "CREWAI_STORAGE_DIR": str(folder / "crewai"),
        }
        return ["tests.load.stock_service", *arguments], environment

    return command


def crew_capture(*arguments: str, **settings: str) -> Start:
    """A Crew Capture; `arguments` are a module and its arguments, by default those of `serve`."""

    def command(port: int, model_url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        environment = {
            "PORT": str(port),
            "DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'runs.db'}",
            "TEMP_DIR": str(folder),
            "LLM_MODEL": "openai/stub-model",
            "LLM_BASE_URL": model_url,
            "LLM_API_KEY": "none",
            **settings,
        }
        return list(arguments) or ["app.cli", "serve"], environment

    return command


def tool_crew(**settings: str) -> Start:
    """A Crew Capture whose idea crew has a tool that burns CPU."""
    return crew_capture("tests.load.tool_service", **settings)


def generated_project(port: int, model_url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """A Crew Capture with a project of `crewai create crew`, which has memory, for each topic."""
    environment = {
        **os.environ,
        "CREWAI_DMN": "true",  # no questions
        "CREWAI_DISABLE_TELEMETRY": "true",
        "CREWAI_DISABLE_VERSION_CHECK": "true",
    }
    command = [str(Path(sys.executable).with_name("crewai")), "create", "crew", "project"]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    definition = folder / "project" / "crew.jsonc"
    text = definition.read_text(encoding="utf-8")
    if '"memory": true' not in text or (topic := "current AI trends") not in text:
        raise RuntimeError(f"the generated project is another one:\n{text}")
    definition.write_text(text.replace(topic, "{topic}"), encoding="utf-8")
    options = folder / "crews.toml"
    options.write_text("[project]\nreplace_models = true\n", encoding="utf-8")
    start = crew_capture(
        CREWS=f"project={folder / 'project'}",
        CREWS_FILE=str(options),
        EMBEDDING_MODEL="stub-embedder",
    )
    return start(port, model_url, folder)


def traced(share: float) -> Start:
    """A Crew Capture that sends the traces of that share of its runs to the model's server."""

    def command(port: int, model_url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
        arguments, environment = crew_capture(ENGINE="auto")(port, model_url, folder)
        environment |= {
            "OTEL_EXPORTER_OTLP_ENDPOINT": model_url.removesuffix("/v1"),
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(share),
        }
        return arguments, environment

    return command


def machines(*options: str) -> Start:
    """A process that accepts runs, and workers, over PostgreSQL and NATS."""
    return crew_capture("tests.load.machines_service", *options, ENGINE="auto")


SERVICES = {
    "limit": Service("the limit: three bare HTTP calls", limit),
    "plan": Service(
        "Crew Capture, recorded plan",
        crew_capture(ENGINE="auto"),
        keeps_rows=True,
        says="crew idea: execution mode plan",
    ),
    "plan-ram": Service(
        "Crew Capture, recorded plan, outputs in RAM",
        crew_capture(ENGINE="auto"),
        keeps_rows=True,
        says="crew idea: execution mode plan",
        outputs_in_ram=True,
    ),
    "plan-unobserved": Service(
        "Crew Capture, recorded plan, no metrics and no records of calls",
        crew_capture("tests.load.unobserved_service", "serve", ENGINE="auto"),
        keeps_rows=True,
        says="crew idea: execution mode plan",
    ),
    "plan-traced": Service(
        "Crew Capture, recorded plan, traces of a tenth of the runs",
        traced(0.1),
        keeps_rows=True,
        says="crew idea: execution mode plan",
    ),
    "native": Service(
        "Crew Capture, native executor",
        crew_capture(ENGINE="native"),
        keeps_rows=True,
        says="crew idea: execution mode native",
    ),
    "memory": Service(
        "Crew Capture, a generated project with memory",
        generated_project,
        keeps_rows=True,
        says="crew project: execution mode native",
        model_calls_per_run=4,
        crew="project",
    ),
    "plan-two": Service(
        "Crew Capture, recorded plan, two processes",
        crew_capture(ENGINE="auto", WORKERS="2"),
        keeps_rows=True,
        says="crew idea: execution mode plan",
        processes=2,
    ),
    "tool": Service(
        "Crew Capture, a tool of 200 ms of CPU",
        tool_crew(),
        keeps_rows=True,
        says="crew idea: execution mode native",
        model_calls_per_run=4,
    ),
    "tool-two": Service(
        "Crew Capture, a tool of 200 ms of CPU, two processes",
        tool_crew(WORKERS="2"),
        keeps_rows=True,
        says="crew idea: execution mode native",
        processes=2,
        model_calls_per_run=4,
    ),
    "machines": Service(
        "Crew Capture, recorded plan, two workers over NATS",
        machines("--workers", "2"),
        says="crew idea: execution mode plan",
        processes=2,
    ),
    "tool-worker": Service(
        "Crew Capture, a tool of 200 ms of CPU, one worker over NATS",
        machines("--workers", "1", "--tool"),
        says="crew idea: execution mode native",
        model_calls_per_run=4,
    ),
    "tool-workers": Service(
        "Crew Capture, a tool of 200 ms of CPU, two workers over NATS",
        machines("--workers", "2", "--tool"),
        says="crew idea: execution mode native",
        processes=2,
        model_calls_per_run=4,
    ),
    "kickoff": Service("stock CrewAI, kickoff in threads", stock("kickoff")),
    "akickoff": Service("stock CrewAI, akickoff", stock("akickoff")),
}


class Process:
    """A running process with its children: its CPU time and memory."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def cpu_seconds(self) -> float:
        """User and system time so far, children that ended included."""
        total = 0.0
        for process in self._tree():
            with _gone_is_zero():
                times = process.cpu_times()
                total += times.user + times.system
                if process == self._root:
                    total += times.children_user + times.children_system
        return total

    def resident_bytes(self) -> int:
        """Memory that is in RAM now."""
        total = 0
        for process in self._tree():
            with _gone_is_zero():
                total += process.memory_info().rss
        return total

    @contextmanager
    def peak_memory(self) -> Iterator[Callable[[], int]]:
        """Gives a function that tells the largest `resident_bytes` seen in this block."""
        peak = [self.resident_bytes()]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                peak[0] = max(peak[0], self.resident_bytes())

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            yield lambda: peak[0]
        finally:
            done.set()
            sampler.join()

    def _tree(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


@contextmanager
def started(
    arguments: list[str],
    port: int,
    log: Path,
    environment: dict[str, str] | None = None,
    start: Launch = launch,
) -> Iterator[Process]:
    """Runs a server until the end of the block. Raises RuntimeError if it doesn't come up."""
    inherited = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **(environment or {})}
    process = start(arguments, log.parent, environment, log, log)
    try:
        _wait_until_up(process, port, log)
        yield Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def deployed(
    service: Service,
    folder: Path,
    model_seconds: float,
    start: Launch = launch,
    outputs: Path | None = None,
) -> Iterator[Deployment]:
    """Runs a service and its model server, which answers after that many seconds, in `folder`.

    Its outputs are in `outputs`, by default in `folder` as well.

    Raises RuntimeError if either doesn't come up, or if the service isn't what it is called.
    """
    model_port, port = free_port(), free_port()
    stub = ["tests.load.stub_model", "--port", str(model_port), "--delay", str(model_seconds)]
    model_url = f"http://127.0.0.1:{model_port}"
    arguments, environment = service.start(port, f"{model_url}/v1", folder)
    if outputs is not None:
        environment["TEMP_DIR"] = str(outputs)
    log = folder / "service.log"
    with (
        started(stub, model_port, folder / "stub.log", start=start),
        started(arguments, port, log, environment, start) as process,
    ):
        _wait_until_said(service, log)
        yield Deployment(process, f"http://127.0.0.1:{port}", model_url, folder)


@contextmanager
def folder_for_outputs(service: Service, folder: Path) -> Iterator[Path]:
    """The folder in which a service stores outputs: `folder`, unless they are in RAM."""
    if not service.outputs_in_ram:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="crew-capture-bench-", dir="/dev/shm") as in_ram:
        yield Path(in_ram)


def free_port() -> int:
    """A port that nothing listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lost_runs(folder: Path, expected: int) -> int:
    """How many runs of a Crew Capture in `folder` are not saved once, as succeeded.

    A run that is there beyond those expected counts as well.
    """
    with closing(sqlite3.connect(folder / "runs.db")) as database:
        query = "SELECT count(*), count(*) FILTER (WHERE status = 'succeeded') FROM user_runs"
        runs, succeeded = database.execute(query).fetchone()
        return abs(expected - int(runs)) + int(runs) - int(succeeded)


def left_outputs(outputs: Path) -> int:
    """How many outputs a Crew Capture left in its folder for them."""
    return len(list((outputs / "idea_crew_outputs").glob("*.md")))


def _wait_until_up(process: Command, port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5)
        except urllib.error.HTTPError as answer:
            if answer.code == 404:  # a server without such a page is up
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-2000:]
    raise RuntimeError(f"what logs to {log} did not come up:\n{tail}")


def _wait_until_said(service: Service, log: Path) -> None:
    """One process answers while the others still start."""
    deadline = time.monotonic() + _START_SECONDS
    while (text := log.read_text(errors="replace")).count(service.says) < service.processes:
        if service.processes == 1 or time.monotonic() > deadline:
            raise RuntimeError(f"the log lacks {service.says!r}:\n{text[-2000:]}")
        time.sleep(0.1)


@contextmanager
def _gone_is_zero() -> Iterator[None]:
    with suppress(psutil.NoSuchProcess):
        yield
