"""Every internal of CrewAI that the engine relies on is pinned, and patched in one location."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

from crewai import Agent, Crew, Task
from crewai.agents.agent_executor import AgentExecutor
from crewai.events.event_bus import CrewAIEventsBus
from crewai.flow.runtime import Flow
from crewai.llms.providers.openai.completion import OpenAICompletion

from app.engine import patches
from app.engine.patches import apply, removed
from app.engine.runtime import thread_fields
from app.pins import openai
from app.pins.crewai import PINS
from tests.engine.crews import one
from tests.engine.recording import RecordingLLM

_ENGINE = Path(patches.__file__).parent


def test_a_release_that_the_engine_does_not_fit_is_reported_with_all_changes(
    tmp_path: Path,
) -> None:
    start = (
        "import sys, crewai.utilities.agent_utils as utils; from app.cli import main;"
        "del utils._prepare_llm_call; utils.handle_context_length = utils.aget_llm_response;"
        "sys.argv[1:] = ['doctor']; main()"
    )
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    started = subprocess.run(
        [sys.executable, "-c", start],
        check=False,
        env={"PYTHONPATH": str(_ENGINE.parents[1]), **kept, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert started.returncode == 1
    lines = started.stderr.splitlines()
    start_of_list = lines.index("crew-capture: the engine does not fit this release of CrewAI:")
    changed, gone = lines[start_of_list + 1 :]
    assert "handle_context_length has changed" in changed
    assert "_prepare_llm_call is gone; it matters because: called by ours" in gone
    assert "Traceback" not in started.stderr


def test_replacing_twice_changes_nothing_and_can_be_undone() -> None:
    apply()
    ours = Task._execute_core
    apply()
    assert Task._execute_core is ours
    with removed():
        assert Task._execute_core is not ours
        assert Task._execute_core.__module__ == "crewai.task"
    assert Task._execute_core is ours


def test_outside_of_runs_crewai_works_as_ever() -> None:
    apply()
    model = RecordingLLM()
    output = one()(model).kickoff(inputs={"topic": "tea", "year": 1})
    assert output.raw.startswith("answer ")
    assert len(model.requests) == 1


def test_every_replacement_of_crewai_is_listed() -> None:
    of_python = {replacement for _, _, replacement in thread_fields.INSTRUMENTED}
    replaced = {name for _, name, other in patches._REPLACEMENTS if other not in of_python}
    listed = " ".join(pin.where for pin in (*PINS, *openai.PINS))
    known_by_another_name = {
        "default_factory": "TaskOutputStorageHandler",
        "KNOWLEDGE_DIRECTORY": "convert_to_path",
        "ThreadPoolExecutor": "RecallFlow",
        "as_completed": "RecallFlow",
        "model_post_init": "Memory",
        "drain_writes": "Memory",
        "_factory": "resolve_knowledge_storage",
        "yaml": "load_yaml",
        "_file_store": "astore_task_files",
        # Of a package that the service does not install.
        "detect_content_type_from_path": "_process_message_files",
        "TaskStartedEvent": "_aexecute_core",
        "TaskCompletedEvent": "_aexecute_core",
        "AgentExecutionStartedEvent": "aexecute_task",
        "AgentExecutionCompletedEvent": "_finalize_task_execution",
        "AgentLogsStartedEvent": "_show_start_logs",
        "AgentLogsExecutionEvent": "_show_logs",
    }
    for name in replaced:
        assert known_by_another_name.get(name, name) in listed, name


def test_every_private_method_of_crewai_that_the_engine_names_is_listed() -> None:
    kinds = (Agent, AgentExecutor, Crew, CrewAIEventsBus, Flow, OpenAICompletion, Task)
    methods = {
        name
        for kind in kinds
        for name, method in inspect.getmembers(kind, inspect.isroutine)
        if re.match("_[a-z]", name) and "crewai" in str(getattr(method, "__module__", ""))
    }
    named = {
        name
        for file in _ENGINE.rglob("*.py")
        for name in re.findall(r"\b_[a-z]\w*", file.read_text())
    }
    listed = {name for pin in PINS for name in re.split(r"[:.]", pin.where)}
    assert named & methods <= listed
    assert "_setup_messages" in named & methods
