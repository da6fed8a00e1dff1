"""Projects as people write them: small ones of our own, a shape each.

`SHAPES` are those that the service accepts, `REFUSED` are those that it refuses with one line.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_IMPORT = "from crewai import Agent, Crew, Task\n"

_BODY = """
poet = Agent(role="Poet", goal="Rhyme", backstory="None")
poem = Task(description="On {topic}", expected_output="A poem", agent=poet)
"""

_CLASS = """
from crewai import Agent, Crew, Task
from crewai.project import CrewBase, agent, crew, task

@CrewBase
class NAME:
    agents_config, tasks_config = {}, {}
    @agent
    def poet(self):
        return Agent(role="Poet", goal="Rhyme", backstory="None")
    @task
    def poem(self):
        return Task(description="NAME on {topic}", expected_output="A poem", agent=self.poet())
    @crew
    def crew(self):
        return Crew(agents=self.agents, tasks=self.tasks)
"""

_FLOW = """
from crewai.flow.flow import Flow, start
from pydantic import BaseModel

class State(BaseModel):
    topic: str = "none"

class NAME(Flow[State]):
    @start()
    def write(self):
        return f"NAME on {self.state.topic}"
"""

_MAIN = """
from pkg.crew import NAME

def run():
    inputs = {"topic": "AI"}
    try:
        NAME().crew().kickoff(inputs=inputs)
    except Exception as error:
        raise Exception(f"An error occurred: {error}")

def train():
    NAME().crew().train(n_iterations=1, filename="x.pkl", inputs={})
"""


def _indented(text: str, spaces: int = 4) -> str:
    return "".join(f"{' ' * spaces}{line}\n" for line in text.strip().splitlines())


def _crew(name: str = "Poets") -> str:
    return _CLASS.replace("NAME", name)


def _flow(name: str = "Recital") -> str:
    return _FLOW.replace("NAME", name)


def _main(name: str = "Poets") -> str:
    return _MAIN.replace("NAME", name)


def _factory(signature: str, end: str = "return crew", text: str = '"On {topic}"') -> str:
    body = _BODY.replace('"On {topic}"', text) + "crew = Crew(agents=[poet], tasks=[poem])\n" + end
    return f"{_IMPORT}\ndef {signature}:\n{_indented(body)}"


@dataclass(frozen=True)
class Shape:
    """A project's files, the source that names it after its folder, and inputs of a run.

    Its result contains `expected`, and `mode` is its execution mode.
    """

    files: Mapping[str, str]
    source: str = ""
    inputs: Mapping[str, Any] = field(default_factory=lambda: {"topic": "tulips"})
    expected: str = "On tulips"
    mode: str = "plan"

    def write(self, folder: Path) -> str:
        """Write the files below a folder; the source of the crew."""
        for name, text in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return f"{folder}{self.source}"


SHAPES: Mapping[str, Shape] = {
    # Imports and folders
    "src/pkg on the path": Shape(
        {
            "src/pkg/crew.py": "from tools.words import WORD\n" + _crew("WORD_"),
            "src/pkg/tools/words.py": "WORD = 1\n",
            "src/pkg/main.py": _main("WORD_"),
        },
        expected="WORD_ on tulips",
    ),
    "from src.pkg import": Shape(
        {
            "src/pkg/crew.py": "from src.pkg.tools.words import WORD\n" + _crew(),
            "src/pkg/tools/words.py": "from pkg.tools import more\nWORD = 1\n",
            "src/pkg/tools/more.py": "",
            "main.py": "from src.pkg.crew import Poets\nPoets().crew().kickoff()\n",
        },
        expected="Poets on tulips",
    ),
    "a flat project": Shape(
        {
            "crew.py": "import words\n" + _crew(),
            "words.py": "",
            "main.py": "from crew import Poets\nPoets().crew().kickoff(inputs={})\n",
        },
        expected="Poets on tulips",
    ),
    "a package without src": Shape(
        {
            "pkg/__init__.py": "",
            "pkg/crew.py": "from .words import WORD\nfrom pkg.words import WORD\n" + _crew(),
            "pkg/words.py": "WORD = 1\n",
            "pkg/main.py": _main(),
        },
        expected="Poets on tulips",
    ),
    "a package named app": Shape(
        {
            "app/__init__.py": "",
            "app/crew.py": "from app.words import WORD\n" + _crew(),
            "app/words.py": "WORD = 1\n",
            "app/main.py": "from app.crew import Poets\nPoets().crew().kickoff()\n",
        },
        expected="Poets on tulips",
    ),
    "a package named app without __init__.py": Shape(
        {"app/crew.py": "from app.words import WORD\n" + _crew(), "app/words.py": "WORD = 1\n"},
        expected="Poets on tulips",
    ),
    "modules named app and storage": Shape(
        {
            "crew.py": "import app\nfrom storage import KEPT\nassert app.MINE\n" + _crew(),
            "storage.py": "KEPT = 1\n",
            "app.py": "MINE = 1\n",
        },
        expected="Poets on tulips",
    ),
    "a backend folder": Shape(
        {
            "backend/app/crew.py": "from app.agents import WORD\n" + _crew(),
            "backend/app/agents.py": "WORD = 1\n",
            "backend/main.py": "from app.crew import Poets\nPoets().crew().kickoff()\n",
            "frontend/package.json": "{}",
        },
        expected="Poets on tulips",
    ),
    "sys.path is changed": Shape(
        {
            "jobs/run.py": (
                "import os, sys\n"
                "sys.path.append(os.path.join(os.path.dirname(__file__), '..', 'lib'))\n"
                "from helper import WORD\n" + _crew()
            ),
            "lib/helper.py": "WORD = 1\n",
        },
        expected="Poets on tulips",
    ),
    "importlib.import_module": Shape(
        {
            "crew.py": "import importlib\nimportlib.import_module('parts.one')\n" + _crew(),
            "parts/one.py": "",
        },
        expected="Poets on tulips",
    ),
    "a module in a folder that is not on the path": Shape(
        {"crew.py": "from helpers import WORD\n" + _crew(), "lib/deep/helpers.py": "WORD = 1\n"},
        expected="Poets on tulips",
    ),
    "a folder whose name is no name of Python": Shape(
        {"my-crew/crew.py": "import words\n" + _crew(), "my-crew/words.py": ""},
        expected="Poets on tulips",
    ),
    "one project below the folder": Shape(
        {
            "README.md": "",
            "poets/pyproject.toml": "[tool.crewai]\ntype = 'crew'\n",
            "poets/src/pkg/crew.py": _crew(),
            "poets/src/pkg/main.py": _main(),
        },
        expected="Poets on tulips",
    ),
    "files relative to the project": Shape(
        {
            "crew.py": (
                "import os\nfrom pathlib import Path\n"
                "WORD = open('data/word.txt').read()\n"
                "assert os.path.exists('data') and Path('data/word.txt').read_text() == WORD\n"
                "assert Path('data').resolve() == Path(__file__).parent / 'data'\n"
                "assert os.listdir('data') == ['word.txt'] and list(Path('data').glob('*.txt'))\n"
                + _crew()
            ),
            "data/word.txt": "word",
        },
        expected="Poets on tulips",
    ),
    "os.chdir to the project": Shape(
        {
            "pkg/crew.py": (
                "import os\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n"
                "WORD = open('word.txt').read()\n" + _crew()
            ),
            "pkg/word.txt": "word",
        },
        expected="Poets on tulips",
    ),
    "configuration in YAML read by the code": Shape(
        {
            "src/pkg/config/tasks.yaml": "poem:\n  description: On {topic}\n",
            "src/pkg/crew.py": (
                "import yaml\nfrom crewai import Agent, Crew, Task\n"
                "with open('src/pkg/config/tasks.yaml') as file:\n"
                "    tasks = yaml.safe_load(file)\n"
                "def create_crew():\n"
                "    poet = Agent(role='Poet', goal='Rhyme', backstory='None')\n"
                "    poem = Task(**tasks['poem'], expected_output='A poem', agent=poet)\n"
                "    return Crew(agents=[poet], tasks=[poem])\n"
            ),
        },
    ),
    "configuration in YAML elsewhere": Shape(
        {
            "config/agents.yaml": "poet:\n  role: Poet\n  goal: Rhyme\n  backstory: None\n",
            "config/tasks.yaml": (
                "poem:\n  description: On {topic}\n  expected_output: A poem\n  agent: poet\n"
            ),
            "crews/poets.py": (
                "from crewai import Agent, Crew, Task\n"
                "from crewai.project import CrewBase, agent, crew, task\n"
                "@CrewBase\nclass Poets:\n"
                "    agents_config = '../config/agents.yaml'\n"
                "    tasks_config = '../config/tasks.yaml'\n"
                "    @agent\n    def poet(self):\n"
                "        return Agent(config=self.agents_config['poet'])\n"
                "    @task\n    def poem(self):\n"
                "        return Task(config=self.tasks_config['poem'])\n"
                "    @crew\n    def crew(self):\n"
                "        return Crew(agents=self.agents, tasks=self.tasks)\n"
            ),
        },
    ),
    # Several crews, and flows
    "the class that main.py runs": Shape(
        {
            "src/pkg/crew.py": _crew("Poets") + _crew("Critics"),
            "src/pkg/main.py": _main("Critics"),
        },
        expected="Critics on tulips",
    ),
    "the class that a script of pyproject.toml runs": Shape(
        {
            "pyproject.toml": "[project.scripts]\nrun_crew = 'pkg.start:run'\n",
            "src/pkg/crew.py": _crew("Poets") + _crew("Critics"),
            "src/pkg/start.py": _main("Critics"),
            "src/pkg/main.py": "from pkg.crew import Poets, Critics\n",
        },
        expected="Critics on tulips",
    ),
    "a class by its name": Shape(
        {"src/pkg/crew.py": _crew("Poets") + _crew("Critics"), "src/pkg/main.py": ""},
        source=":Critics",
        expected="Critics on tulips",
    ),
    "crews in subpackages": Shape(
        {
            "src/pkg/crews/poets/poets.py": _crew("Poets"),
            "src/pkg/crews/critics/critics.py": _crew("Critics"),
            "src/pkg/main.py": (
                "from pkg.crews.poets.poets import Poets\n"
                "def run():\n    Poets().crew().kickoff()\n"
            ),
        },
        expected="Poets on tulips",
    ),
    "a flow class in another module": Shape(
        {
            "src/pkg/main.py": (
                "from pkg.flows import Recital\ndef kickoff():\n    Recital().kickoff()\n"
            ),
            "src/pkg/flows.py": _flow().replace(
                "class Recital(Flow[State])",
                "class Base(Flow[State]):\n    pass\n\nclass Recital(Base)",
            ),
        },
        expected="Recital on tulips",
        mode="flow",
    ),
    "a flow of a flat project, beside its crews": Shape(
        {
            "main.py": "from crew import Poets\n" + _flow() + "Recital().kickoff()\n",
            "crew.py": _crew(),
        },
        expected="Recital on tulips",
        mode="flow",
    ),
    # Functions and classes
    "a factory": Shape({"crew.py": _factory("create_crew()")}),
    "a factory by its name": Shape(
        {"crew.py": _factory("first()") + _factory("second()", text='"Two on {topic}"')},
        source=":second",
        expected="Two on tulips",
    ),
    "a factory of the file": Shape(
        {"jobs/poems.py": _factory("create_crew()"), "jobs/other.py": _factory("create_other()")},
        source="/jobs/poems.py",
    ),
    "an async factory": Shape(
        {"crew.py": _factory("create_crew()").replace("\ndef ", "\nasync def ")}
    ),
    "a factory with parameters": Shape(
        {
            "main.py": _factory(
                "build_crew(topic: str, lines: int = 4)", text='f"On {topic} {lines}"'
            )
        },
        expected="On tulips 4",
        mode="native",
    ),
    "agents at module level": Shape(
        {
            "agents.py": (
                "from crewai import Agent\npoet = Agent(role='P', goal='g', backstory='b')\n"
            ),
            "main.py": (
                "from agents import poet\nfrom crewai import Crew, Task\n"
                "def create_crew():\n"
                "    poem = Task(description='On {topic}', expected_output='e', agent=poet)\n"
                "    return Crew(agents=[poet], tasks=[poem])\n"
            ),
        }
    ),
    "a crew at module level": Shape(
        {
            "crew.py": f"{_IMPORT}{_BODY}my_crew = Crew(agents=[poet], tasks=[poem])\n",
            "main.py": (
                "from crew import my_crew\nif __name__ == '__main__':\n    my_crew.kickoff()\n"
            ),
        }
    ),
    "a class with a method": Shape(
        {
            "crew.py": (
                f"{_IMPORT}class Poets:\n    def create_crew(self):\n"
                + _indented(_BODY, 8)
                + "        return Crew(agents=[poet], tasks=[poem])\n"
            )
        }
    ),
    "classes of agents and tasks": Shape(
        {
            "agents.py": (
                "from crewai import Agent\nclass PoemAgents:\n    def poet(self):\n"
                "        return Agent(role='Poet', goal='Rhyme', backstory='None')\n"
            ),
            "tasks.py": (
                "from crewai import Task\nclass PoemTasks:\n    def poem(self, agent, topic):\n"
                "        return Task(description=f'On {topic}', expected_output='e', agent=agent)\n"
            ),
            "main.py": (
                "from agents import PoemAgents\nfrom tasks import PoemTasks\n"
                "from crewai import Crew\n"
                "class PoemCrew:\n"
                "    def __init__(self, topic):\n        self.topic = topic\n"
                "    def run(self):\n"
                "        poet = PoemAgents().poet()\n"
                "        poem = PoemTasks().poem(poet, self.topic)\n"
                "        return Crew(agents=[poet], tasks=[poem]).kickoff()\n"
                "if __name__ == '__main__':\n"
                "    topic = input('Topic? ')\n    print(PoemCrew(topic).run())\n"
            ),
        },
        mode="flow",
    ),
    "a class with @CrewBase and a parameter": Shape(
        {
            "crew.py": _crew().replace(
                "    @agent",
                "    def __init__(self, tone):\n        self.tone = tone\n    @agent",
                1,
            )
        },
        inputs={"topic": "tulips", "tone": "sad"},
        expected="Poets on tulips",
        mode="native",
    ),
    # Programs
    "a function that kicks off": Shape(
        {"main.py": _factory("run_crew(topic)", "return crew.kickoff(inputs={'topic': topic})")},
        mode="flow",
    ),
    "an async function that kicks off": Shape(
        {
            "main.py": _factory(
                "main(topic: str = 'AI')",
                "print(await crew.kickoff_async(inputs={'topic': topic}))",
            ).replace("\ndef ", "\nasync def ")
            + "import asyncio\nif __name__ == '__main__':\n    asyncio.run(main())\n"
        },
        mode="flow",
    ),
    "a function that kicks off with fixed inputs": Shape(
        {"main.py": _factory("run()", "inputs = {'topic': 'AI'}\ncrew.kickoff(inputs=inputs)")},
        mode="flow",
    ),
    "two crews, one after the other": Shape(
        {
            "main.py": _factory("make(text)", text="text") + "def run(topic):\n"
            "    first = make('First {topic}').kickoff(inputs={'topic': topic})\n"
            "    return make('On ' + topic + ' after ' + first.raw[:3]).kickoff()\n"
        },
        expected="On tulips after",
        mode="flow",
    ),
    "a kickoff where it is imported": Shape(
        {
            "main.py": f"{_IMPORT}{_BODY}my_crew = Crew(agents=[poet], tasks=[poem])\n"
            "result = my_crew.kickoff(inputs={'topic': 'AI'})\nprint(result)\n"
        },
    ),
    "its inputs are the defaults": Shape(
        {
            "main.py": f"{_IMPORT}{_BODY}"
            "print(Crew(agents=[poet], tasks=[poem]).kickoff(inputs={'topic': 'AI'}))\n"
        },
        inputs={},
        expected="On AI",
    ),
    "everything in the main block": Shape(
        {
            "main.py": f"{_IMPORT}if __name__ == '__main__':\n    topic = input('Topic? ')\n"
            + _indented(f"{_BODY}crew = Crew(agents=[poet], tasks=[poem])\n")
            + "    print(crew.kickoff(inputs={'topic': topic}))\n"
        },
        mode="flow",
    ),
    "input() where it is imported": Shape(
        {
            "main.py": f"topic = input('Topic? ').strip()\n{_IMPORT}{_BODY}"
            "crew = Crew(agents=[poet], tasks=[poem])\nprint(crew.kickoff({'topic': topic}))\n"
        },
        mode="flow",
    ),
    "two kickoffs where it is imported": Shape(
        {
            "main.py": f"{_IMPORT}{_BODY}crew = Crew(agents=[poet], tasks=[poem])\n"
            "crew.kickoff(inputs={'topic': 'AI'})\ncrew.kickoff(inputs={'topic': 'AI'})\n"
        },
        mode="flow",
    ),
    "main() where it is imported": Shape(
        {
            "main.py": _factory(
                "main()", "topic = input('Topic? ')\nprint(crew.kickoff(inputs={'topic': topic}))"
            )
            + "main()\n"
        },
        mode="flow",
    ),
}

REFUSED: Mapping[str, tuple[Shape, str]] = {
    "several crews": (
        Shape({"src/pkg/crew.py": _crew("Poets") + _crew("Critics"), "src/pkg/main.py": ""}),
        "has 2 crews; name one: {folder}:Poets, {folder}:Critics",
    ),
    "an unknown name": (
        Shape({"crew.py": _crew("Poets")}, source=":Critics"),
        "has no Critics; its crews and flows are: {folder}:Poets",
    ),
    "several projects": (
        Shape(
            {
                "one/pyproject.toml": "[tool.crewai]\ntype = 'crew'\n",
                "two/pyproject.toml": "[tool.crewai]\ntype = 'crew'\n",
            }
        ),
        "holds 2 projects: one, two; name the folder of one",
    ),
    "a missing package": (
        Shape({"crew.py": "import no_such_pack\n" + _crew()}),
        "crew.py: there is no module no_such_pack; install what the crew needs beside the service: "
        "pip install no-such-pack",
    ),
    "a missing package with another name": (
        Shape({"crew.py": "import cv2\n" + _crew()}),
        "pip install opencv-python",
    ),
    "notebooks only": (Shape({"crew.ipynb": "{}"}), "has notebooks only; export one with"),
    "input() in a module that has no kickoff": (
        Shape({"crew.py": "name = input('Name? ')\n" + _crew()}),
        "crew.py line 1 calls input() where it is imported",
    ),
    "a kickoff in a module that another imports": (
        Shape(
            {
                "crew.py": "import other\n" + _crew(),
                "other.py": f"{_IMPORT}{_BODY}\n\nCrew(agents=[poet], tasks=[poem]).kickoff()\n",
            }
        ),
        "other.py line 7 kicks off a crew where it is imported; move that code under if __name__",
    ),
    "a parameter that is no input": (
        Shape({"crew.py": _factory("create_crew(agents, tasks)")}),
        "create_crew has a parameter that can't be an input; add a function that calls it",
    ),
    "a parameter of a class that is no input": (
        Shape({"crew.py": _factory("create_crew(client: Agent)")}, source=":create_crew"),
        "its parameter client can't be an input",
    ),
    "an error of its code": (
        Shape({"crew.py": "\nraise ValueError('no luck')\n" + _crew()}),
        "crew.py: ValueError: no luck (crew.py line 2)",
    ),
    "no crew": (
        Shape({"words.py": "WORD = 1\n"}),
        "no file of its code has a class with @CrewBase",
    ),
}
