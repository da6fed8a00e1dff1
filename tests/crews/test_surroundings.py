"""The surroundings of a project's code: its own environment, files and terminal."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.crews.registry import load_crews
from app.engine import CrewFailed, Engine, TaskFinished, TaskStarted
from app.engine.llm import close_models
from app.model_setup import configured_model, models_of_crews
from app.projects import Project, within
from app.projects.run_files import RunFiles
from app.projects.secrets import is_secret, without_secrets
from app.runs.crew_info import crew_info
from app.runs.errors import InvalidInput
from app.runs.inputs import check_names, validate_inputs
from app.settings import load_settings
from tests.load.stub_model import StubModel, run_stub

_CREW = """
from crewai import Agent, Crew, LLM, Task

def create_crew():
    poet = Agent(role="Poet", goal="Rhyme", backstory="None", llm=LLM(model="gpt-4o"))
    poem = Task(description="On {topic}", expected_output="A poem", agent=poet)
    return Crew(agents=[poet], tasks=[poem])
"""

_DEFAULT = _CREW.replace(', llm=LLM(model="gpt-4o")', "")

_FLOW = """
import os
from crewai.flow.flow import Flow, start
from pydantic import BaseModel, Field

class State(BaseModel):
    topic: str = "tea"
    airtable_api_key: str = "written-into-the-code"
    home: str = os.getenv("SECRET_HOME", "")
    nested: dict = Field(default_factory=lambda: {"password": "hunter22"})

class Recital(Flow[State]):
    @start()
    def act(self):
        BODY
"""


@asynccontextmanager
async def engine_of(**values: Any) -> AsyncIterator[Engine]:
    settings = load_settings(**values)
    crews = load_crews(settings)
    engine = Engine(
        model=configured_model(settings, crews),
        models_of_crews=models_of_crews(settings, crews),
        mode=settings.engine,
        max_stock_threads=4,
    )
    try:
        await engine.start(list(crews)[1:])
        yield engine
    finally:
        await engine.aclose()
        await close_models()


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


async def test_each_project_calls_models_with_its_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-service")
    monkeypatch.chdir(tmp_path)
    stub = StubModel(delay_seconds=0, record=True)
    other = StubModel(delay_seconds=0, record=True)
    override = "from dotenv import load_dotenv\nload_dotenv(override=True)\n"
    async with run_stub(stub) as base_url, run_stub(other) as other_url:
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        projects = {
            "one": write(tmp_path / "one", crew__py=override + _CREW),
            "two": write(tmp_path / "two", crew__py=override + _CREW),
            "default": write(tmp_path / "three", crew__py=override + _DEFAULT),
        }
        for name, folder in projects.items():
            (folder / ".env").write_text(f"OPENAI_API_KEY=key-of-{name}\n")
        (projects["default"] / ".env").open("a").write(f"OPENAI_BASE_URL={other_url}\n")
        before = dict(os.environ)
        crews = ",".join(f"{name}={folder}" for name, folder in projects.items())
        async with engine_of(crews=crews, llm_model="openai/gpt-4o-mini") as engine:
            runs = [(name, f"{name} {i}") for i in range(10) for name in projects]
            await asyncio.gather(*(engine.run(name, {"topic": topic}) for name, topic in runs))
        assert dict(os.environ) == before
    keys = {
        str(body["messages"]).partition("On ")[2].partition(" ")[0]: headers["authorization"]
        for body, headers in zip(
            stub.bodies, ({k.lower(): v for k, v in h.items()} for h in stub.headers), strict=True
        )
    }
    assert keys == {
        "one": "Bearer key-of-one",
        "two": "Bearer key-of-two",
        # The deployment's model has the deployment's key and address.
        "default": "Bearer key-of-the-service",
    }
    assert len(stub.bodies) == 30
    assert other.bodies == []


def test_variables_of_a_project_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARED", "of the process")
    one, two = Project("one", tmp_path), Project("two", tmp_path)
    with within(one):
        os.environ["SHARED"] = "of one"
        os.environ["NEW"] = "new"
        del os.environ["PATH"]
        assert os.getenv("SHARED") == "of one"
        assert os.environ.copy()["NEW"] == "new"
        assert "PATH" not in os.environ
        assert len(os.environ) == len(list(os.environ))
        with pytest.raises(KeyError):
            os.environ["PATH"]
        with pytest.raises(TypeError):
            os.environ["NUMBER"] = 1  # type: ignore[assignment]
        script = "import os; print(os.environ['SHARED'], 'PATH' in os.environ)"
        printed = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert printed.stdout == "of one False\n"
    for context in (within(two), within(None)):
        with context:
            assert os.environ["SHARED"] == "of the process"
            assert "NEW" not in os.environ
            assert "PATH" in os.environ
    assert os.environ["SHARED"] == "of the process"


def test_relative_paths_are_those_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = write(tmp_path / "project", data__txt="data"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with within(Project("one", folder)):
        assert Path("data.txt").read_text() == "data"
        assert os.listdir() == ["data.txt"]  # noqa: PTH208
        assert Path.cwd() == folder
        Path("made/deep").mkdir(parents=True)
        Path("made/deep/file.txt").write_text("new")
        Path("made/deep/file.txt").rename("moved.txt")
        assert (folder / "moved.txt").read_text() == "new"
        assert [path.name for path in Path().glob("*.txt")]
        with sqlite3.connect("rows.db") as database:
            database.execute("CREATE TABLE rows (id)")
        assert (folder / "rows.db").exists()
        printed = subprocess.run(["/bin/ls"], capture_output=True, text=True, check=True)
        assert "moved.txt" in printed.stdout
        os.chdir("made")
        assert Path("deep").is_dir()
        with pytest.raises(FileNotFoundError):
            os.chdir("missing")
    assert Path.cwd() == elsewhere
    assert list(elsewhere.iterdir()) == []


async def test_a_tool_reads_files_of_its_project_and_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    body = """
        import threading
        found = []
        reader = threading.Thread(target=lambda: found.append(open("data.txt").read()))
        reader.start()
        reader.join()
        return f"{self.state.topic}: {found[0]}"
"""
    folder = write(tmp_path / "project", main__py=_FLOW.replace("BODY", body), data__txt="data")
    reader = write(tmp_path / "reader", main__py=_FLOW.replace("BODY", 'return input("Name? ")'))
    async with engine_of(crews=f"one={folder},two={reader}") as engine:
        assert (await engine.run("one", {"topic": "rain"})).raw == "rain: data"
        with pytest.raises(
            CrewFailed, match=r"input\(\) has no terminal in a service.*human_input"
        ):
            await engine.run("two", {})


async def test_secret_defaults_of_a_flow_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_HOME", "from-the-environment")
    show = "return [self.state.airtable_api_key, self.state.home, self.state.nested]"
    folder = write(tmp_path / "project", main__py=_FLOW.replace("BODY", show))
    async with engine_of(crews=f"one={folder}") as engine:
        described = engine.describe("one")
        assert described.defaults["topic"] == "tea"
        published = str([described.defaults, described.state_schema])
        for secret in ("written-into-the-code", "from-the-environment", "hunter22"):
            assert secret not in published
        # The flow itself has them.
        raw = (await engine.run("one", {})).raw
        assert json.loads(raw) == [
            "written-into-the-code",
            "from-the-environment",
            {"password": "hunter22"},
        ]


async def test_a_misspelt_input_of_a_flow_is_refused_with_the_nearest(tmp_path: Path) -> None:
    folder = write(tmp_path / "project", main__py=_FLOW.replace("BODY", "return 'x'"))
    crews = load_crews(load_settings(crews=f"one={folder}"))
    async with engine_of(crews=f"one={folder}") as engine:
        spec = crews.get("one")
        assert spec is not None
        info = crew_info(spec, engine.describe("one"))
        with pytest.raises(InvalidInput, match="no such input; did you mean topic"):
            check_names(info, ["topik"])
        check_names(info, ["topic", "crewai_trigger_payload"])


async def test_a_text_that_is_too_long_names_the_setting(tmp_path: Path) -> None:
    folder = write(tmp_path / "project", crew__py=_DEFAULT)
    spec = load_crews(load_settings(crews=f"one={folder}")).get("one")
    assert spec is not None
    async with engine_of(crews=f"one={folder}") as engine:
        info = crew_info(spec, engine.describe("one"))
    assert validate_inputs(info, {"topic": "x" * 100_000})
    problem = "100001 characters; at most 100000 are allowed .max_chars of the input in CREWS_FILE."
    with pytest.raises(InvalidInput, match=problem):
        validate_inputs(info, {"topic": "x" * 100_001})


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("api_key", "abc", True),
        ("openaiApiKey", "abc", True),
        ("PASSWORD", "x", True),
        ("github_token", "x", True),
        ("headers", {"Authorization": "x", "token": "y"}, True),
        ("items", [{"secret": "x"}], True),
        ("api_key", "", False),
        ("api_key", None, False),
        ("keywords", "a, b", False),
        ("key_points", "three", False),
        ("max_tokens", 100, False),
        ("author", "Jane", False),
        ("topic", "tea", False),
    ],
)
def test_a_secret_is_known_by_its_name(name: str, value: object, secret: bool) -> None:
    assert is_secret(name, value) is secret
    schema = {"properties": {name: {"default": value, "type": "string"}}}
    assert ("default" in without_secrets(schema)["properties"][name]) is not secret


def test_a_secret_is_known_by_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "long-enough")
    assert is_secret("address", "postgres://me:long-enough@host")
    assert is_secret("anything", "long-enough")
    assert not is_secret("anything", "long")


_FILES = """
import os
from crewai import Agent, Crew, Task

FOUND = []

def create_crew():
    poet = Agent(role="Poet", goal="Rhyme", backstory="None")
    def check(output):
        path = os.path.join(os.getcwd(), "out/draft.md")
        FOUND.append((output.raw, open("out/draft.md").read(), open(path).read()))
    draft = Task(
        description="Draft on {topic}", expected_output="e", agent=poet, output_file="out/draft.md"
    )
    review = Task(description="Review {topic}", expected_output="e", agent=poet, callback=check)
    return Crew(agents=[poet], tasks=[draft, review])
"""


@pytest.mark.parametrize("mode", ["native", "stock"])
async def test_later_code_of_a_run_reads_the_output_file_of_an_earlier_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    folder = write(tmp_path / "project", crew__py=_FILES)
    async with engine_of(crews=f"one={folder}", engine=mode) as engine:
        topics = [f"topic {number}." for number in range(20)]
        results = await asyncio.gather(*(engine.run("one", {"topic": t}) for t in topics))
    found = sys.modules["served_projects.one.crew"].FOUND
    drafts = {result.tasks[0].text for result in results}
    assert len(drafts) == len(found) == 20
    assert {(text, by_path) for _, text, by_path in found} == {(text, text) for text in drafts}
    for review, draft, _ in found:  # each read its own
        assert draft.partition("Draft on")[2] == review.partition("Review")[2]
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["crew.py"]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_files_of_a_run_stay_in_its_folder(tmp_path: Path) -> None:
    files = RunFiles()
    for outside in ("../escaped.md", "a/../../escaped.md", "", "/"):
        files.write(outside, "text")
    assert not files.exist
    files.write("/notes.md", "text")
    found = files.find("notes.md")
    assert found is not None
    assert Path(found).read_text() == "text"
    assert Path(found).stat().st_mode & 0o077 == 0
    assert Path(found).parent.stat().st_mode & 0o077 == 0
    assert files.find("../" + Path(found).parent.name + "/../x") is None
    files.remove()
    files.write("notes.md", "too late")
    assert not Path(found).parent.exists()


async def test_observers_of_a_run_are_outside_of_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = write(tmp_path / "project", crew__py=_FILES)
    (folder / ".env").write_text("ONLY_OF_THE_PROJECT=1\n")
    seen: list[tuple[Path, bool]] = []

    class Observer:
        async def task_started(self, event: TaskStarted) -> None:
            here = await asyncio.to_thread(Path.cwd)
            seen.append((here, "ONLY_OF_THE_PROJECT" in os.environ))

        async def task_finished(self, event: TaskFinished) -> None:
            await self.task_started(event)  # type: ignore[arg-type]

        def token_listener(self, task: TaskStarted) -> None:
            return None

    for mode in ("auto", "native", "stock"):
        async with engine_of(crews=f"one={folder}", engine=mode) as engine:
            await engine.run("one", {"topic": "rain"}, Observer())
    assert set(seen) == {(tmp_path / "elsewhere", False)}
    assert len(seen) == 12
