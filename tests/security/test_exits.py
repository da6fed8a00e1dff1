"""A crew that calls exit(), wherever it does, fails alone and never ends the process."""

from pathlib import Path
from typing import Any

import pytest
import uvicorn
from crewai import Crew
from crewai.flow.flow import Flow, start
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool
from pydantic import BaseModel, field_validator

from app.cli import serve
from app.crews.registry import CrewSpec, Registry
from app.crews.sources import SourceError, open_source
from app.engine import CrewBroken, CrewFailed, Engine
from app.settings import load_settings
from tests.engine.crews import INPUTS, agent, one, task
from tests.engine.recording import RecordingLLM, Source
from tests.serving import Serve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODES = ("auto", "native", "stock")


class OtherExit(BaseException):
    """An exception that is no Exception, such as those of some test tools and frameworks."""


ATTEMPTS = [SystemExit(3), KeyboardInterrupt(), OtherExit("out")]


@pytest.mark.parametrize("line", ["raise SystemExit(3)", "raise KeyboardInterrupt"])
def test_an_import_that_exits_is_an_error_of_its_source(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exiting_crew.py").write_text(f"{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"exiting_crew: (SystemExit|KeyboardInterrupt)"):
        open_source("exiting", "exiting_crew:build")


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: type(attempt).__name__)
async def test_a_factory_that_exits_is_broken_at_start_and_in_a_run(attempt: BaseException) -> None:
    model = RecordingLLM()
    exits = [attempt]

    def build() -> Crew:
        if exits:
            raise exits[0]
        return one()(model)

    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    with pytest.raises(CrewBroken, match=rf"^crew crew can't be built: {type(attempt).__name__}"):
        await engine.start([Source("crew", build)])
    exits.clear()
    await engine.start([Source("crew", build)])
    exits.append(attempt)
    with pytest.raises(CrewBroken, match=rf"^crew crew can't be built: {type(attempt).__name__}"):
        await engine.run("crew", INPUTS)
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: type(attempt).__name__)
@pytest.mark.parametrize("where", ["tool", "guardrail", "callback", "async task", "model"])
async def test_a_run_that_exits_fails_alone(where: str, attempt: BaseException, mode: Any) -> None:
    exits: list[BaseException] = []

    def leave(*_: Any) -> Any:
        if exits:
            raise exits[0]
        return True, "fine"

    def check(output: Any) -> tuple[bool, Any]:
        verdict: tuple[bool, Any] = leave(output)
        return verdict

    @tool("leave")
    def leaving() -> str:
        """Leave."""
        return str(leave())

    def answer(request: Any, nth: int) -> str:
        if where == "model":
            leave()
        if where == "tool" and nth == 0:
            return "Thought: now\nAction: leave\nAction Input: {}"
        return "Thought: done\nFinal Answer: done"

    def build(model: BaseLLM) -> Crew:
        expert = agent(model, tools=[leaving] if where == "tool" else [])
        options: dict[str, Any] = {}
        if where == "guardrail":
            options["guardrail"] = check
        if where == "callback":
            options["callback"] = leave
        if where == "async task":
            options |= {"async_execution": True, "callback": leave}
        return Crew(agents=[expert], tasks=[task(expert, **options)])

    model = RecordingLLM(answer)
    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("crew", lambda: build(model))])
    exits.append(attempt)
    with pytest.raises(CrewFailed, match="tried to end the process"):
        await engine.run("crew", INPUTS)
    exits.clear()
    assert (await engine.run("crew", INPUTS)).raw
    await engine.aclose()


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: type(attempt).__name__)
async def test_a_flow_that_exits_fails_alone(attempt: BaseException) -> None:
    class Leaving(Flow[Any]):
        @start()
        def leave(self) -> str:
            raise attempt

    engine = Engine(model=RecordingLLM(), mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", Leaving)])
    with pytest.raises(CrewFailed, match="tried to end the process"):
        await engine.run("crew", {})
    await engine.aclose()


@pytest.mark.parametrize(
    "attempt", [*ATTEMPTS, RuntimeError("odd")], ids=lambda attempt: type(attempt).__name__
)
async def test_a_validator_that_exits_refuses_the_inputs(
    attempt: BaseException, serve: Serve
) -> None:
    class State(BaseModel):
        topic: str = "tea"

        @field_validator("topic")
        @classmethod
        def check(cls, topic: str) -> str:
            if topic == "exit":
                raise attempt
            return topic

    class Validated(Flow[State]):
        @start()
        def begin(self) -> str:
            return "done"

    async with serve(Registry([CrewSpec("flow", Validated)])) as service:
        for topic, status in (("exit", 400), ("tea", 202)):
            response = await service.http.post(
                "/api/runs", json={"crew": "flow", "inputs": {"topic": topic}}
            )
            assert response.status_code == status, response.text
            if status == 400:
                assert type(attempt).__name__ in response.json()["error"]


def test_a_start_that_exits_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With uvicorn's default, the server would continue and answer every request with 500."""
    monkeypatch.chdir(tmp_path)
    configs: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, _: configs.append(self.config))
    monkeypatch.setattr(serve, "configure_logging", lambda *_: None)
    with pytest.raises(SystemExit):
        serve._serve(load_settings())
    assert configs[0].lifespan == "on"
