"""The installed service where other packages have the names of its own, `app` and `storage`."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
_SECONDS = 240

_CREW = """
from crewai import Agent, Crew, Task
from app.texts import GOAL
from storage import BACKSTORY

def create_crew():
    poet = Agent(role="Poet", goal=GOAL, backstory=BACKSTORY)
    poem = Task(description="On {topic}", expected_output="A poem", agent=poet)
    return Crew(agents=[poet], tasks=[poem])
"""
_PACKAGES = {
    "app/__init__.py": "",
    "app/texts.py": "GOAL = 'the goal of WHERE'",
    "app/crew.py": _CREW,
    "storage.py": "BACKSTORY = 'the story of WHERE'",
}
# With a package that imports those, whose crew has a secret of its run.
_PATH = {
    **_PACKAGES,
    "poets/__init__.py": "",
    "poets/crew.py": "from crew_capture import run_secret\n"
    + _CREW.replace("=GOAL", "=GOAL + run_secret('A', '')"),
}
_MODULES = {
    "app.py": _CREW.replace("from app.texts import GOAL", "GOAL = 'the goal of a module'"),
    "storage/__init__.py": "BACKSTORY = 'the story of a package'",
}
_ALONE = {"crew.py": _CREW}
_BUILD = """
import sys
from crew_capture.command import main
import app, storage
from app.crews.registry import load_crews
from app.settings import Settings

for spec in load_crews(Settings(crews=sys.argv[1], _env_file=None)):
    if spec.name != "idea":
        agent = spec.build().agents[0]
        print(spec.name, agent.goal, agent.backstory, sep="; ")
print(app.__file__, storage.__file__, sep="; ")
"""
_FORK_SERVER = """
import multiprocessing
from crew_capture.command import main
from app.runs.execution.isolation import _PRELOADED
from app.sentences import uncapitalized

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED[:2])  # the third imports CrewAI
    child = context.Process(target=uncapitalized, args=("One",))
    child.start()
    child.join()
    raise SystemExit(child.exitcode)
"""


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text.replace("WHERE", folder.name))
    return folder


def _environment(**settings: object) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("HOME", "PATH", "LANG") if name in os.environ}
    return kept | {name: str(value) for name, value in settings.items()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and with all other packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True)
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/*/site-packages")
    # A path file that Python doesn't follow further, so that the source folder is not among them.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (file,) = folder.glob("*.whl")
    pip += ["--python", str(venv / "bin/python")]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(file)], check=True)
    return venv / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on `PYTHONPATH`, and the working directory of commands."""
    return _write(tmp_path / "folder", _PATH)


@pytest.fixture
def environment(folder: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of commands: three crews that import packages named as the service's."""
    sources = {
        "project": _write(tmp_path / "project", _MODULES),
        "beside": "poets.crew:create_crew",
        "named": "app.crew:create_crew",
    }
    crews = ",".join(f"{name}={source}" for name, source in sources.items())
    return _environment(PYTHONPATH=folder, CREWS=crews, TEMP_DIR=tmp_path)


def test_its_packages_are_below_one_name(wheel: Path) -> None:
    (packages,) = wheel.parent.glob("lib/*/site-packages")
    names = {one.name.partition("-")[0] for one in packages.iterdir() if one.name != "others.pth"}
    assert names == {"crew_capture"}


def test_crews_import_packages_that_have_the_names_of_its_own(wheel: Path, tmp_path: Path) -> None:
    (packages,) = wheel.parent.glob("lib/*/site-packages")
    own = set(packages.iterdir())
    _write(packages, _PATH)
    try:
        sources = {
            "packages": _write(tmp_path / "packages", _PACKAGES),
            "modules": _write(tmp_path / "modules", _MODULES),
            "alone": _write(tmp_path / "alone", _ALONE),
            "installed": "poets.crew:create_crew",
            "also": "app.crew:create_crew",
        }
        crews = ",".join(f"{name}={source}" for name, source in sources.items())
        printed = subprocess.check_output(
            [str(wheel / "python"), "-P", "-c", _BUILD, crews],
            cwd=_write(tmp_path / "empty", {"notes.txt": ""}),
            env=_environment(),
            text=True,
        )
    finally:
        for one in set(packages.iterdir()) - own:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    *crews_found, files = [line.split("; ") for line in printed.splitlines()]
    assert crews_found == [
        ["packages", "the goal of packages", "the story of packages"],
        ["modules", "the goal of a module", "the story of a package"],
        ["alone", "the goal of site-packages", "the story of site-packages"],
        ["installed", "the goal of site-packages", "the story of site-packages"],
        ["also", "the goal of site-packages", "the story of site-packages"],
    ]
    assert all(Path(file).is_relative_to(packages / "crew_capture/service") for file in files)


def test_the_wheel_runs_a_crew_of_the_folder(
    wheel: Path, folder: Path, environment: dict[str, str]
) -> None:
    command = [str(wheel / "crew-capture"), "run", "--crew", "named", "--input", "topic=tea"]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def test_the_repository_finds_its_own_packages_first(
    folder: Path, environment: dict[str, str]
) -> None:
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "crew_capture", "doctor"]
    subprocess.run(command, cwd=folder, env=environment, check=True)


def test_a_service_of_the_wheel_runs_crews_of_the_folder(
    wheel: Path, folder: Path, environment: dict[str, str]
) -> None:
    command = [str(wheel / "crew-capture"), "serve", "--port", "0"]
    with _serving(command, folder, environment) as url:
        for crew in ("project", "beside", "named"):
            body = {"crew": crew, "inputs": {"topic": "tea"}, "secrets": {"A": "a secret"}}
            ran = httpx.post(f"{url}/api/runs?wait=120", json=body, timeout=_SECONDS)
            assert ran.json()["status"] == "succeeded", ran.text


def test_processes_of_the_wheel_find_its_own_packages_first(
    wheel: Path, folder: Path, environment: dict[str, str]
) -> None:
    # New processes, which don't inherit the modules of the first.
    command = [str(wheel / "crew-capture"), "serve", "--accept-only", "--port", "0"]
    with _serving(command, folder, environment | {"WORKERS": "2"}) as url:
        assert httpx.get(f"{url}/health/live", timeout=_SECONDS).is_success
    # Forks, as isolated runs have them, of a process that does not inherit the path.
    script = _write(folder.with_name("script"), {"fork.py": _FORK_SERVER}) / "fork.py"
    subprocess.run([str(wheel / "python"), str(script)], cwd=folder, env=environment, check=True)


@contextmanager
def _serving(command: Sequence[str], folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A service that is ready; its address."""
    log = folder.with_name("service.log")
    with log.open("wb") as lines:
        service = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=lines, stderr=subprocess.STDOUT
        )
    try:
        url = _ready(service, log)
        yield url
        service.terminate()
        # A single process ends by the signal that stopped it.
        assert service.wait(_SECONDS) in (0, -signal.SIGTERM), log.read_text()
    finally:
        service.kill()
        service.wait()


def _ready(service: subprocess.Popen[bytes], log: Path) -> str:
    """The address of a service, once it is ready."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and service.poll() is None:
        if found := re.search(r"Serving on (http://\S+)", log.read_text()):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text())
