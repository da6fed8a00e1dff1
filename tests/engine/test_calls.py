"""A run reports each call to a model and to a tool, with its task, however the crew runs."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from crewai import Crew
from crewai.flow.flow import Flow, start
from crewai.llms.base_llm import BaseLLM

from app.engine import CallObserver, CrewResult, Engine, ModelCall, ModelError, ToolCall
from tests.engine.crews import (
    INPUTS,
    agent,
    delegates,
    delegation,
    fail,
    function_calls,
    one,
    react,
    shout,
    task,
    three,
)
from tests.engine.recording import RecordingLLM, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _Seen(CallObserver):
    """Keeps the calls in the order of their starts; refuses model calls beyond `limit`."""

    def __init__(self, limit: int | None = None, *, waits: bool = False) -> None:
        self.calls: list[ModelCall | ToolCall] = []
        self.finished: list[ModelCall | ToolCall] = []
        self.admitted = 0
        self._limit = limit
        self._waits = waits

    def admit(self, call: ModelCall) -> Awaitable[None] | None:
        if self._waits:
            return self._check()
        self._count()
        return None

    async def _check(self) -> None:
        await asyncio.sleep(0)
        self._count()

    def _count(self) -> None:
        if self.admitted == self._limit:
            raise LookupError("no call is left")
        self.admitted += 1

    def call_started(self, call: ModelCall | ToolCall) -> None:
        assert call.finished_at is None
        self.calls.append(call)

    def call_finished(self, call: ModelCall | ToolCall) -> None:
        self.finished.append(call)

    @property
    def models(self) -> list[ModelCall]:
        return [call for call in self.calls if isinstance(call, ModelCall)]

    @property
    def tools(self) -> list[ToolCall]:
        return [call for call in self.calls if isinstance(call, ToolCall)]


async def _run(
    build: Callable[[], Any], model: BaseLLM, mode: Any, calls: _Seen
) -> CrewResult | BaseException:
    engine = Engine(model=model, mode=mode, max_stock_threads=4)
    try:
        await engine.start([Source("crew", build)])
        try:
            result = await engine.run("crew", INPUTS, calls=calls)
            assert isinstance(result, CrewResult)
            return result
        except Exception as error:
            return error
    finally:
        await engine.aclose()


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_each_model_call_is_reported_with_its_task_tokens_and_times(mode: Any) -> None:
    model, seen = RecordingLLM(), _Seen()
    result = await _run(lambda: three(model), model, mode, seen)
    assert isinstance(result, CrewResult)
    tasks = [call.task for call in seen.models if call.task]
    assert sorted(task.index for task in tasks[:2]) == [0, 1]  # they begin at the same time
    assert [task.index for task in tasks[2:]] == [2]
    assert all(task.agent == result.tasks[task.index].agent for task in tasks)
    assert set(seen.finished) == set(seen.calls)
    for call in seen.models:
        assert (call.model, call.input_tokens, call.output_tokens) == ("recording", 10, 2)
        assert call.finished_at is not None
        assert call.started_at <= call.finished_at
        assert call.error is None
        assert call.within is None
    answers = {call.answer for call in seen.models}
    assert answers == {f"answer {request.digest}" for request in model.requests}


@pytest.mark.parametrize("mode", ["native", "stock"])
@pytest.mark.parametrize("by_function", [True, False])
async def test_each_executed_tool_is_reported_once(mode: Any, by_function: bool) -> None:
    answer = function_calls("shout", "fail") if by_function else react("shout")
    model, seen = RecordingLLM(answer, native_tools=by_function), _Seen()
    result = await _run(lambda: one({"tools": [shout, fail]})(model), model, mode, seen)
    assert isinstance(result, CrewResult), result
    ok = next(call for call in seen.tools if call.tool == "shout")
    assert ok.input["text"]
    assert ok.result == ok.input["text"].upper() + "!"
    assert ok.task == seen.models[0].task
    assert ok.within is None
    assert len(seen.tools) == (2 if by_function else 1)
    if by_function:
        failed = next(call for call in seen.tools if call.tool == "fail")
        assert isinstance(failed.error, ValueError)


@pytest.mark.parametrize("mode", ["native", "stock"])
@pytest.mark.parametrize("by_function", [True, False])
async def test_calls_of_an_agent_that_a_tool_delegates_to_are_within_the_tool(
    mode: Any, by_function: bool
) -> None:
    model, seen = RecordingLLM(delegates, native_tools=by_function), _Seen()
    result = await _run(lambda: delegation(model), model, mode, seen)
    assert isinstance(result, CrewResult), result
    [tool] = seen.tools
    assert tool.tool == "delegate_work_to_coworker"
    inner = [call for call in seen.models if call.within is tool]
    assert len(inner) == 1
    assert inner[0].task == tool.task
    assert tool.started_at <= inner[0].started_at
    assert (inner[0].finished_at or 0) <= (tool.finished_at or 0)


async def test_calls_inside_a_flow_belong_to_the_flows_tasks() -> None:
    model, seen = RecordingLLM(), _Seen()

    class Both(Flow):  # type: ignore[type-arg]
        @start()
        async def begin(self) -> str:
            own = await model.acall("of the flow itself")
            expert = agent(model)
            crew = Crew(agents=[expert], tasks=[task(expert, 1, name="facts")])
            return str(own) + (await crew.akickoff(inputs=INPUTS)).raw

    result = await _run(Both, model, "auto", seen)
    assert isinstance(result, CrewResult), result
    assert [(c.task.index, c.task.name) for c in seen.models if c.task] == [
        (0, "result"),
        (1, "facts"),
    ]


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_failed_call_is_reported_with_its_error(mode: Any) -> None:
    model, seen = RecordingLLM(lambda _, nth: RuntimeError(f"gone {nth}")), _Seen()
    failure = await _run(lambda: one()(model), model, mode, seen)
    assert isinstance(failure, ModelError)
    assert seen.models
    assert all(isinstance(call.error, RuntimeError) for call in seen.models)
    assert seen.finished == seen.calls


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_refused_call_ends_the_run_with_the_observers_error(mode: Any, waits: bool) -> None:
    """A crew that would call its model for ever makes no further call."""
    model = RecordingLLM(react("shout", times=100), native_tools=False)
    seen = _Seen(limit=3, waits=waits)
    build = one({"tools": [shout], "max_iter": 200})
    failure = await _run(lambda: build(model), model, mode, seen)
    assert isinstance(failure, LookupError)
    assert len(model.requests) == len(seen.models) == 3


async def test_a_flow_that_handles_every_error_is_ended_by_a_refused_call() -> None:
    model, seen = RecordingLLM(), _Seen(limit=1, waits=True)

    class Stubborn(Flow):  # type: ignore[type-arg]
        @start()
        def begin(self) -> str:
            for _ in range(5):
                with contextlib.suppress(Exception):
                    one()(model).kickoff(inputs=INPUTS)
            return "done all the same"

    failure = await _run(Stubborn, model, "auto", seen)
    assert isinstance(failure, LookupError)
    assert len(model.requests) == 1


async def test_a_cancelled_call_is_reported_as_such() -> None:
    class Hanging(RecordingLLM):
        async def acall(self, *args: Any, **kwargs: Any) -> Any:
            await asyncio.Event().wait()

    model, seen = Hanging(), _Seen()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: one()(model))])
    run = asyncio.create_task(engine.run("crew", INPUTS, calls=seen))
    async with asyncio.timeout(60):
        while not seen.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    [call] = seen.finished
    assert isinstance(call.error, asyncio.CancelledError)
    await engine.aclose()
