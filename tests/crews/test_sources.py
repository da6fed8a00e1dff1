"""The sources of crews: factories and folders, and the errors of those that can't be loaded."""

import asyncio
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from crewai import Crew
from crewai.flow.flow import Flow

from app.crews.registry import load_crews
from app.crews.sources import open_source
from app.engine import CrewBroken, Engine, EngineMode
from app.engine.llm import ModelSettings, create_model
from app.projects import Project, within
from app.settings import SettingsError, load_settings

FACTORIES = '''
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.project import CrewBase, agent, crew, task


def build():
    """Build the crew; called once for each run."""
    poet = Agent(role="Poet", goal="Rhyme", backstory="Of {country}")
    poem = Task(description="On {topic}", expected_output="A poem", agent=poet, output_file="p.md")
    return Crew(agents=[poet], tasks=[poem])


@CrewBase
class Poets:
    @agent
    def poet(self):
        return Agent(role="Poet", goal="Rhyme", backstory="None")

    @task
    def poem(self):
        return Task(description="On {topic}", expected_output="A poem", agent=self.poet())

    @crew
    def crew(self):
        return Crew(agents=self.agents, tasks=self.tasks)


@CrewBase
class Readers(Poets):
    """A reading of any poem.

    At some length.
    """


def poets():
    return Poets()


class Recital(Flow):
    @start()
    def recite(self):
        return "a poem"


SHARED = build()
TEXT = "a poem"


def number():
    return 7
'''


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of factories beside the settings, and its name."""
    (tmp_path / "poetry_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "poetry_factories"
    sys.modules.pop("poetry_factories", None)


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def engine_of(crews: str, mode: EngineMode = "auto") -> Engine:
    settings = load_settings(crews=crews)
    engine = Engine(model=create_model(ModelSettings()), mode=mode, max_stock_threads=2)
    await engine.start([crew for crew in load_crews(settings) if crew.name != "idea"])
    return engine


@pytest.mark.parametrize("factory", ["build", "Poets", "poets"])
async def test_a_factory_is_a_function_or_a_class_of_crews(factories: str, factory: str) -> None:
    engine = await engine_of(f"poem={factories}:{factory}")
    assert "topic" in engine.describe("poem").inputs
    result = await engine.run("poem", {"topic": "rain", "country": "Wales"})
    assert "On rain" in result.raw


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_crew_of_a_class_does_not_outlive_its_run(
    factories: str, mode: EngineMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CrewAI keeps them all, and gives one to a later instance at the same address."""
    engine = await engine_of(f"poem={factories}:Poets", mode)
    poets = sys.modules[factories].Poets
    built: list[weakref.ref[Crew]] = []
    crew_of = poets.crew

    def crew(self: object) -> Crew:
        made = crew_of.__get__(self)()
        built.append(weakref.ref(made))
        return made  # type: ignore[no-any-return]

    monkeypatch.setattr(poets, "crew", crew)
    for topic in ("rain", "snow"):
        assert f"On {topic}" in (await engine.run("poem", {"topic": topic})).raw
    assert built
    async with asyncio.timeout(30):
        # The last run's thread and asyncio tasks hold it until they end.
        while any(crew() for crew in built):
            await asyncio.sleep(0.01)
            gc.collect()


async def test_a_method_of_a_class_is_called_once_for_an_instance(factories: str) -> None:
    await engine_of(f"poem={factories}:Poets")
    one, other = sys.modules[factories].Poets(), sys.modules[factories].Poets()
    assert one.poet() is one.poet()
    assert one.crew() is one.crew()
    assert one.poet() is not other.poet()


def test_a_flow_class_is_a_factory_of_flows(factories: str) -> None:
    code = open_source("recital", f"{factories}:Recital")
    one, other = code.build(), code.build()
    assert isinstance(one, Flow)
    assert one is not other


def test_a_crew_is_described_by_the_first_paragraph_of_its_docstring(factories: str) -> None:
    assert open_source("poem", f"{factories}:Readers").description == "A reading of any poem."
    assert open_source("poem", f"{factories}:Poets").description == ""


def test_the_docstring_of_a_factory_does_not_describe_the_crew(factories: str) -> None:
    assert open_source("poem", f"{factories}:build").description == ""


async def test_a_json_project_runs_unchanged(json_project: Path) -> None:
    engine = await engine_of(f"research={json_project}")
    described = engine.describe("research")
    assert [task.name for task in described.tasks] == ["research_task"]


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_classic_project_runs_unchanged(
    classic_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: EngineMode
) -> None:
    monkeypatch.chdir(tmp_path)
    engine = await engine_of(f"research={classic_project}", mode)
    described = engine.describe("research")
    assert described.inputs == ("current_year", "topic")
    assert [task.name for task in described.tasks] == ["research_task", "report"]
    result = await engine.run("research", {"topic": "tea", "current_year": 2026})
    assert [task.name for task in result.tasks] == ["research_task", "report"]
    assert _files(tmp_path) == []  # its task says output_file='report.md'
    assert not (classic_project / "report.md").exists()


def test_a_flow_project_runs_unchanged(flow_project: Path) -> None:
    flow = open_source("post", str(flow_project)).build()
    assert type(flow).__name__ == "ContentFlow"


def test_a_declared_flow_project_runs_unchanged(declared_flow_project: Path) -> None:
    flow = open_source("post", str(declared_flow_project)).build()
    assert isinstance(flow, Flow)
    assert flow.kickoff() == "AI agents"


async def test_projects_with_modules_of_equal_names_keep_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        package = tmp_path / name / "src/app"  # a name that the service itself has, too
        (package / "tools").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "tools/__init__.py").touch()
        (package / "tools/words.py").write_text(f"GOAL = 'the goal of {name}'\n")
        (tmp_path / name / "src/main.py").write_text(f"ROLE = 'the role of {name}'\n")
        (package / "crew.py").write_text(
            "import main\n"
            "import app.tools.words as words\n"
            "from crewai import Agent, Crew, Task\n"
            "from crewai.project import CrewBase, agent, crew, task\n"
            "@CrewBase\n"
            "class Both:\n"
            "    agents_config, tasks_config = {}, {}\n"
            "    @agent\n"
            "    def a(self):\n"
            "        from app.tools import words as late\n"
            "        from .tools.words import GOAL\n"
            "        assert late is words and GOAL == words.GOAL\n"
            "        return Agent(role=main.ROLE, goal=GOAL, backstory='b')\n"
            "    @task\n"
            "    def t(self):\n"
            "        return Task(description='d', expected_output='e', agent=self.a())\n"
            "    @crew\n"
            "    def crew(self):\n"
            "        return Crew(agents=self.agents, tasks=self.tasks)\n"
        )
    codes = {name: open_source(name, str(tmp_path / name)) for name in ("one", "two")}
    for name in ("two", "one"):
        crew = codes[name].build()
        assert isinstance(crew, Crew)
        assert crew.agents[0].role == f"the role of {name}"
        assert crew.agents[0].goal == f"the goal of {name}"
    assert "main" not in sys.modules or not sys.modules["main"].__file__.startswith(str(tmp_path))
    assert sys.modules["app"].__file__ == str(Path(__file__).parents[2] / "app/__init__.py")


def test_a_factory_in_a_package_named_app_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import app

    (tmp_path / "app").mkdir()
    (tmp_path / "app/crew.py").write_text("from app.words import WORD\n" + FACTORIES)
    (tmp_path / "app/words.py").write_text("WORD = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    crew = open_source("poem", "app.crew:build").build()
    assert isinstance(crew, Crew)
    assert sys.modules["app"] is app


async def test_knowledge_is_looked_for_in_the_projects_own_folder(
    classic_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crewai.knowledge.source.text_file_knowledge_source import TextFileKnowledgeSource

    await engine_of("")
    monkeypatch.chdir(tmp_path)
    with within(Project("research", classic_project)):
        source = TextFileKnowledgeSource(file_paths=["user_preference.txt"])
    assert source.safe_file_paths == [classic_project / "knowledge/user_preference.txt"]
    with pytest.raises(FileNotFoundError):
        TextFileKnowledgeSource(file_paths=["user_preference.txt"])


def test_a_folders_environment_is_for_its_project_and_never_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SERPER_API_KEY", "of the service")
    (tmp_path / "crew.jsonc").write_text('{"agents": [], "tasks": []}')
    (tmp_path / ".env").write_text(
        "SERPER_API_KEY=secret-of-the-folder\nWEATHER_KEY=w\nDATABASE_URL=sqlite:///other.db\n"
        "MODEL=gpt-4o\nOPENAI_API_KEY=YOUR_API_KEY\nAWS_PROFILE=other\nEMPTY=\n"
    )
    before = dict(os.environ)
    project = open_source("weather", str(tmp_path)).project
    assert dict(os.environ) == before
    with within(project):
        own = {name: os.environ[name] for name in os.environ if name not in before}
        assert own == {
            "WEATHER_KEY": "w",
            "DATABASE_URL": "sqlite:///other.db",
            "AWS_PROFILE": "other",
        }
        assert os.environ["SERPER_API_KEY"] == "of the service"
    assert "SERPER_API_KEY" in caplog.text
    assert "secret-of-the-folder" not in caplog.text


@pytest.mark.parametrize(
    ("crews", "problem"),
    [
        ("poem", "must be name=package.module:factory or name=FOLDER"),
        ("poem=", "must be name=package.module:factory or name=FOLDER"),
        ("Poem={factories}:build", "a-z, 0-9, _ and -"),
        ("poem={factories}:build,poem={factories}:Poets", "another crew is named poem"),
        ("idea={factories}:build", "another crew is named idea"),
        ("poem=nowhere/at/all", "neither a folder nor package.module:factory"),
        ("poem=no_such_package.crew:build", "there is no module no_such_package; install"),
        ("poem={factories}:rhyme", "has no rhyme"),
        ("poem={factories}:TEXT", "TEXT is neither a function that builds a crew"),
        ("poem={factories}:Crew", "Crew is neither a function that builds a crew"),
        ("poem={folder}/empty", "has neither crew.jsonc nor a Python file"),
        ("poem={folder}/broken_code", "src/p/crew.py: SyntaxError"),
        ("poem={folder}/no_class", "no file of its code has a class with @CrewBase"),
        ("poem={folder}/no_json", "crew.jsonc: "),
        ("poem={folder}/needs_more", "src/p/crew.py: there is no module no_such_tools; install"),
        ("poem={folder}/lost_definition", "definition = 'gone.jsonc', which is no file"),
    ],
)
async def test_a_crew_that_cant_be_loaded_is_reported_in_one_line(
    factories: str, tmp_path: Path, crews: str, problem: str
) -> None:
    for name, text in {
        "broken_code": "class:",
        "no_class": "",
        "needs_more": "import no_such_tools\nfrom crewai import Crew\ncrew = Crew()",
    }.items():
        (tmp_path / name / "src/p").mkdir(parents=True)
        (tmp_path / name / "src/p/crew.py").write_text(text)
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_json").mkdir()
    (tmp_path / "no_json/crew.jsonc").write_text("{")
    (tmp_path / "lost_definition").mkdir()
    (tmp_path / "lost_definition/pyproject.toml").write_text(
        "[tool.crewai]\ntype = 'crew'\ndefinition = 'gone.jsonc'\n"
    )
    crews = crews.format(factories=factories, folder=tmp_path)
    with pytest.raises(SettingsError) as refused:
        load_crews(load_settings(crews=crews))
    message = str(refused.value)
    assert message.startswith("CREWS=")
    assert problem in message
    assert "\n" not in message


async def test_a_crew_that_cant_be_built_is_reported_in_one_line(factories: str) -> None:
    with pytest.raises(CrewBroken, match="crew poem: its factory returns a int, not a crew"):
        await engine_of(f"poem={factories}:number")
