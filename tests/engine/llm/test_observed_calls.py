"""What the client of a model notes in the calls that a run observes."""

from typing import Any

import pytest
from crewai import Agent, Crew, Task

from app.engine import CallObserver, CrewResult, Engine, ModelCall
from app.engine.calls import ToolCall
from tests.engine.llm.conftest import Server
from tests.engine.recording import Source
from tests.load.stub_model import Failure

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _Calls(CallObserver):
    def __init__(self) -> None:
        self.models: list[ModelCall] = []

    def admit(self, call: ModelCall) -> None:
        call.headers = {"traceparent": f"00-{len(self.models)}"}

    def call_started(self, call: ModelCall | ToolCall) -> None:
        assert isinstance(call, ModelCall)
        self.models.append(call)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_call_has_its_retries_end_tokens_and_headers(
    server: Server, mode: Any, stream: bool, no_pauses: list[float]
) -> None:
    model, calls = server.pooled(stream=stream), _Calls()
    engine = Engine(model=model, mode=mode, max_stock_threads=2)

    def build() -> Crew:
        writer = Agent(role="Writer", goal="Write", backstory="Calm", llm=model)
        task = Task(description="Write on {topic}.", expected_output="A text", agent=writer)
        return Crew(agents=[writer], tasks=[task])

    await engine.start([Source("crew", build)])
    server.stub.reset()
    server.stub.failures = {1: Failure(status=500)}
    result = await engine.run("crew", {"topic": "tea"}, calls=calls)
    assert isinstance(result, CrewResult)
    await engine.aclose()
    [call] = calls.models
    assert (call.retries, call.finish_reason) == (1, "stop")
    assert (call.model, call.provider) == ("openai/stub", "openai")
    assert (call.input_tokens, call.output_tokens) == (
        result.usage.prompt_tokens,
        result.usage.completion_tokens,
    )
    assert call.input_tokens > 0
    assert [h["traceparent"] for h in server.stub.headers] == ["00-0", "00-0"]
    if stream:
        assert call.first_token_at is not None
        assert call.started_at <= call.first_token_at <= (call.finished_at or 0)
    else:
        assert call.first_token_at is None
