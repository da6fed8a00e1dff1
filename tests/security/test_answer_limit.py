"""A model's answer and a task's output have a size limit, in every execution mode."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.llms.base_llm import BaseLLM

from app.engine import CrewFailed, Engine, ModelError
from app.engine.llm import on_token
from app.engine.llm.answer_limit import AnswerLimit
from app.engine.llm.pool import ModelPool
from app.engine.llm.transport import AnswerTooLong
from tests.engine.crews import INPUTS, one
from tests.engine.llm.conftest import Server
from tests.engine.recording import RecordingLLM, Source
from tests.load.stub_model import Failure, StubModel, run_stub

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_LIMIT = 2000
_MESSAGES: Any = [{"role": "user", "content": "Write."}]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    stub = StubModel(delay_seconds=0)
    pool = ModelPool(timeout_seconds=60, max_output_chars=_LIMIT)
    async with run_stub(stub) as base_url:
        yield Server(stub, base_url, pool)
        await pool.aclose()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("method", ["acall", "call"])
async def test_an_endless_answer_closes_its_connection_at_the_limit(
    server: Server, method: str, stream: bool
) -> None:
    server.stub.failures[1] = Failure("endless")
    with pytest.raises(AnswerTooLong, match="MAX_OUTPUT_CHARS=2000"):
        await _call(server.pooled(stream=stream), method)
    async with asyncio.timeout(30):
        await server.stub.idle.wait()
    assert server.stub.aborted == 1
    # The slot and the pool are free for the next call.
    assert "Answer" in await _call(server.pooled(stream=stream), method)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("method", ["acall", "call"])
async def test_an_answer_as_long_as_the_limit_is_complete(
    server: Server, method: str, stream: bool
) -> None:
    text = "\x01🚀" * (_LIMIT // 2)
    server.stub.respond = lambda _: {"role": "assistant", "content": text}
    assert await _call(server.pooled(stream=stream), method) == text


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("method", ["acall", "call"])
async def test_a_streamed_line_without_an_end_is_not_kept(
    server: Server, method: str, listens: bool
) -> None:
    server.stub.failures[1] = Failure("endless_line")
    listener = on_token.set((lambda _: None) if listens else None)
    try:
        with pytest.raises(AnswerTooLong):
            await _call(server.pooled(stream=True), method)
    finally:
        on_token.reset(listener)


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_an_endless_answer_fails_its_run_as_a_model_error(server: Server, mode: Any) -> None:
    server.stub.failures = {number: Failure("endless") for number in range(1, 20)}
    model = server.pooled()
    engine = await _engine(model, lambda: one()(model), mode)
    with pytest.raises(ModelError, match="MAX_OUTPUT_CHARS=2000"):
        await engine.run("crew", INPUTS)
    assert server.stub.calls == 1
    await engine.aclose()


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_an_output_beyond_the_limit_fails_its_run(mode: Any) -> None:
    texts: list[str] = []
    model = RecordingLLM(lambda a, n: texts.pop() if texts else "x" * _LIMIT)
    engine = await _engine(model, lambda: one()(model), mode)
    texts.append("x" * (_LIMIT + 1))
    with pytest.raises(CrewFailed, match=r"2001 characters, and MAX_OUTPUT_CHARS=2000"):
        await engine.run("crew", INPUTS)
    assert (await engine.run("crew", INPUTS)).raw == "x" * _LIMIT
    await engine.aclose()


async def test_a_flows_result_and_a_callbacks_result_have_the_same_limit() -> None:
    class Long(Flow[Any]):
        @start()
        def begin(self) -> str:
            return "x" * (_LIMIT + 1)

    def lengthened(result: Any) -> Any:
        result.raw = "x" * (_LIMIT + 1)
        return result

    def crew() -> Crew:
        agent = Agent(role="r", goal="g", backstory="b", llm=model)
        task = Task(description="d", expected_output="e", agent=agent)
        return Crew(agents=[agent], tasks=[task], after_kickoff_callbacks=[lengthened])

    model = RecordingLLM()
    for build in (Long, crew):
        engine = await _engine(model, build, "auto")
        with pytest.raises(CrewFailed, match="MAX_OUTPUT_CHARS=2000"):
            await engine.run("crew", {})
        await engine.aclose()


def test_only_text_of_a_chunk_counts() -> None:
    call = {"index": 0, "function": {"name": "n" * 99, "arguments": "12345"}}
    chunk = {"id": "i" * 99, "choices": [{"delta": {"content": "12345", "tool_calls": [call]}}]}
    limit = AnswerLimit(10)
    assert limit.count_chunk(json.dumps(chunk).encode())
    assert not limit.count_chunk(b'{"choices": [{"delta": {"content": "1"}}]}')
    assert not AnswerLimit(10).count_chunk(b"not JSON at all")


async def _call(model: BaseLLM, method: str) -> Any:
    if method == "acall":
        return await model.acall(_MESSAGES)
    return await asyncio.to_thread(model.call, _MESSAGES)


async def _engine(model: BaseLLM, build: Any, mode: Any) -> Engine:
    engine = Engine(model=model, mode=mode, max_stock_threads=2, max_output_chars=_LIMIT)
    await engine.start([Source("crew", build)])
    return engine
