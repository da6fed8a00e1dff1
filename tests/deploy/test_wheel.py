"""The wheel, installed: its packages and those of a project that have the same names."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

_CREW = """
from crewai import Agent, Crew, Task
from app.texts import GOAL
from storage import BACKSTORY

def create_crew():
    poet = Agent(role="Poet", goal=GOAL, backstory=BACKSTORY)
    poem = Task(description="On {topic}", expected_output="A poem", agent=poet)
    return Crew(agents=[poet], tasks=[poem])
"""
_ALONE = _CREW.replace("from app.texts import GOAL", "GOAL = 'Rhyme'").replace(
    "from storage import BACKSTORY", "BACKSTORY = 'theirs'"
)
_BUILD = """
import app, storage
from app.crews.registry import load_crews
from app.settings import Settings

for spec in load_crews(Settings(crews=CREWS, _env_file=None)):
    if spec.name != "idea":
        print(spec.name, spec.build().agents[0].backstory)
print(app.__file__, storage.__file__)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and with all other packages of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True)
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True
    )
    (packages,) = (folder / "venv").glob("lib/*/site-packages")
    # A path file that Python doesn't follow further, so that the source folder is not among them.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = folder.glob("*.whl")
    target = ["--target", str(packages)]
    subprocess.run([*pip, "install", "--no-deps", *target, str(wheel)], check=True)
    return folder / "venv" / "bin" / "python"


def test_projects_have_packages_named_as_those_of_the_wheel(python: Path, tmp_path: Path) -> None:
    files = {
        "packages/app/__init__.py": "",
        "packages/app/texts.py": "GOAL = 'Rhyme'",
        "packages/app/crew.py": _CREW,
        "packages/storage/__init__.py": "BACKSTORY = 'of packages'",
        "module/app.py": _ALONE.replace("theirs", "of a module"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    crews = f"packages={tmp_path / 'packages'},module={tmp_path / 'module'}"
    # As the installed command, which is started in the project.
    command = [str(python), "-P", "-c", f"CREWS = {crews!r}\n{_BUILD}"]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    printed = subprocess.check_output(
        command, cwd=tmp_path / "packages", env=environment, text=True
    )
    packages, module, files_of_wheel = printed.splitlines()
    assert (packages, module) == ("packages of packages", "module of a module")
    installed = python.parents[1]
    assert all(Path(file).is_relative_to(installed) for file in files_of_wheel.split())
