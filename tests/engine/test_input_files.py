"""Input files of tasks and of kickoffs: read off the event loop, in the folder of the project."""

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from crewai import LLM, Crew
from crewai import task as task_module
from crewai.flow.flow import Flow, start
from crewai.llms import base_llm
from crewai.llms.base_llm import BaseLLM
from crewai_files import File, ImageFile, TextFile

from app.engine import Engine
from app.engine.runtime import input_files
from app.projects import Project, within
from tests.engine.crews import INPUTS, PNG, one, reads, shout
from tests.engine.recording import RecordingLLM, Source, run_engine, run_reference
from tests.load.stub_model import StubModel, run_stub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


async def test_a_model_of_crewai_reads_files_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    own, threads = base_llm.format_multimodal_content, set()

    def noted(*args: Any, **options: Any) -> Any:
        threads.add(threading.get_ident())
        return own(*args, **options)

    monkeypatch.setattr(base_llm, "format_multimodal_content", noted)
    stub = StubModel(delay_seconds=0, record=True)
    async with run_stub(stub) as base_url:
        model = LLM(model="openai/gpt-4o", base_url=base_url, api_key="test")
        build = one(task_options={"input_files": {"dot": ImageFile(source=PNG)}})
        engine = Engine(model=model, mode="auto", max_stock_threads=2)
        await engine.start([Source("crew", lambda: build(model))])
        result = await engine.run("crew", INPUTS)
        await engine.aclose()
    assert result.execution_mode == "native"
    assert "data:image/png;base64," in str(stub.bodies)
    assert threads
    assert threading.get_ident() not in threads


async def test_runs_have_their_own_files_and_leave_none() -> None:
    """Each run's factory reads another file: the same crew, name and task."""
    contents = iter(range(1000))

    def build(model: BaseLLM) -> Crew:
        file = TextFile(source=f"content {next(contents)}.".encode())
        return one(task_options={"input_files": {"note": file}})(model)

    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: build(model))])
    await asyncio.gather(*(engine.run("crew", INPUTS) for _ in range(50)))
    await engine.aclose()
    files = [request.messages[-1]["files"]["note"] for request in model.requests]
    assert all(len(re.findall(r"content \d+\.", file)) == 1 for file in files)
    assert len(set(files)) == len(files) == 50
    assert not input_files._store._files


def test_a_relative_path_is_one_in_the_folder_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/data").write_bytes(PNG)  # only its content shows the type
    monkeypatch.chdir(tmp_path)
    with within(Project("one", tmp_path / "project")):
        file = File(source="data")
        assert (file.content_type, file.read()) == ("image/png", PNG)


@pytest.mark.parametrize("kickoff", ["kickoff", "akickoff"])
async def test_a_crew_in_a_flow_gets_the_files_of_its_kickoff(kickoff: str) -> None:
    model = RecordingLLM(reads("note"))
    files = {"note": TextFile(source=b"On tea")}

    class Reading(Flow):  # type: ignore[type-arg]
        @start()
        async def read(self) -> Any:
            given = {"inputs": dict(INPUTS), "input_files": files}
            if kickoff == "akickoff":
                return await one()(model).akickoff(**given)
            return await asyncio.to_thread(one()(model).kickoff, **given)

    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("flow", Reading)])
    output = (await engine.run("flow", {})).raw
    await engine.aclose()

    reference = RecordingLLM(reads("note"))
    kicked_off = await asyncio.to_thread(
        lambda: one()(reference).kickoff(inputs=dict(INPUTS), input_files=files)
    )
    assert [vars(one) for one in model.requests] == [vars(one) for one in reference.requests]
    assert "On tea" in str(model.requests)
    assert output == kicked_off.raw


@pytest.mark.parametrize(("tools", "mode"), [([], "plan"), ([shout], "native")])
async def test_crewai_ignores_input_files_without_their_package(
    tools: list[Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "HAS_CREWAI_FILES", False)
    file = TextFile(source=b"tea")
    build = one({"tools": tools}, {"input_files": {"a": file}})
    reference = await asyncio.to_thread(run_reference, build, RecordingLLM(), INPUTS)
    ours = await run_engine(build, RecordingLLM(), INPUTS, "auto")
    assert (ours.calls, ours.output) == (reference.calls, reference.output)
    assert ours.execution_mode == mode
