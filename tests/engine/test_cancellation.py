"""A cancelled or failed run stops calling its models, and its slot comes free."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.tools import tool

from app.engine import CallObserver, CrewFailed, Engine, ModelCall, ModelError
from tests.engine.crews import INPUTS, agent, one, task, three
from tests.engine.recording import RecordingLLM, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _Hanging(RecordingLLM):
    """Calls that never answer, and know which of them are under way."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "open", set())

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        me = object()
        self.open.add(me)
        try:
            await asyncio.Event().wait()
        finally:
            self.open.discard(me)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - conditions are of other people's making
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("mode", ["auto", "native"])
async def test_a_cancel_closes_all_model_calls(mode: Any) -> None:
    model = _Hanging()
    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("crew", lambda: three(model))])
    run = asyncio.create_task(engine.run("crew", INPUTS))
    await _until(lambda: len(model.open) == 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert model.open == set()
    await engine.aclose()


class _HalfFailing(_Hanging):
    """Task 2 fails at once, the other calls hang."""

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        if "Task 2" in str(messages):
            await _until(lambda: len(self.open) == 1)
            raise RuntimeError("the model is gone")
        return await super().acall(messages, *args, **kwargs)


@pytest.mark.parametrize("mode", ["auto", "native"])
async def test_when_an_asynchronous_task_fails_its_siblings_calls_end(mode: Any) -> None:
    model = _HalfFailing()
    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("crew", lambda: three(model))])
    with pytest.raises(ModelError, match="the model is gone"):
        await asyncio.wait_for(engine.run("crew", INPUTS), 60)
    assert model.open == set()
    await engine.aclose()


async def test_a_cancelled_stock_run_ends_at_once_and_makes_no_further_call() -> None:
    release, began = threading.Event(), threading.Event()

    def answer(request: Any, nth: int) -> str:
        began.set()
        release.wait(10)
        return "answer"

    model = RecordingLLM(answer)
    reported: list[str] = []

    class Observer:
        async def task_started(self, event: Any) -> None:
            reported.append(f"started {event.index}")

        async def task_finished(self, event: Any) -> None:
            reported.append(f"finished {event.index}")

    def build() -> Crew:
        expert = agent(model)
        return Crew(agents=[expert], tasks=[task(expert, 1), task(expert, 2)])

    engine = Engine(model=model, mode="stock", max_stock_threads=1)
    await engine.start([Source("crew", build)])
    run = asyncio.create_task(engine.run("crew", INPUTS, Observer()))
    await asyncio.to_thread(began.wait, 10)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    waiting = asyncio.create_task(engine.run("crew", INPUTS))
    release.set()
    # The slot is free again once the dropped thread has ended.
    result = await asyncio.wait_for(waiting, 20)
    assert result.raw == "answer"
    assert reported == ["started 0"]
    assert len(model.requests) == 3, "one call of the dropped run, two of the next"
    await engine.aclose()


async def test_a_stock_run_that_waits_for_a_slot_can_be_cancelled() -> None:
    release = threading.Event()
    model = RecordingLLM(lambda request, nth: "x" if release.wait(10) else "late")
    engine = Engine(model=model, mode="stock", max_stock_threads=1)
    await engine.start([Source("crew", lambda: one()(model))])
    first = asyncio.create_task(engine.run("crew", INPUTS))
    await _until(lambda: len(model.requests) == 1)
    second = asyncio.create_task(engine.run("crew", INPUTS))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    release.set()
    await asyncio.wait_for(first, 20)
    assert len(model.requests) == 1
    await engine.aclose()


async def test_cancelling_a_run_inside_a_tool_ends_what_the_tool_started() -> None:
    release, inside = threading.Event(), threading.Event()

    @tool("wait")
    def wait(text: str) -> str:
        """Wait."""
        inside.set()
        release.wait(10)
        return "done"

    model = RecordingLLM(
        lambda a, n: 'Action: wait\nAction Input: {"text": "x"}' if n == 0 else "y"
    )

    def build() -> Crew:
        expert = agent(model, tools=[wait])
        return Crew(agents=[expert], tasks=[task(expert)])

    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", build)])
    run = asyncio.create_task(engine.run("crew", INPUTS))
    await asyncio.to_thread(inside.wait, 10)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    release.set()
    await engine.aclose()
    assert len(model.requests) == 1


async def test_a_delegated_call_ends_with_its_run() -> None:
    hanging = _Hanging()
    delegates = (
        "Thought: ask\nAction: delegate_work_to_coworker\nAction Input: "
        '{"task": "t", "context": "c", "coworker": "Two"}'
    )
    boss = RecordingLLM(lambda request, nth: delegates)

    def build() -> Crew:
        one_, two_ = (
            Agent(role=role, goal="g", backstory="b", llm=llm, allow_delegation=llm is boss)
            for role, llm in (("One", boss), ("Two", hanging))
        )
        return Crew(
            agents=[one_, two_],
            tasks=[Task(description="d", expected_output="e", agent=one_)],
        )

    engine = Engine(model=boss, mode="auto", max_stock_threads=1)
    await engine.start([Source("crew", build)])
    runs = [asyncio.create_task(engine.run("crew", {})) for _ in range(3)]
    await _until(lambda: len(hanging.open) == 1)
    for run in runs:
        run.cancel()
    await asyncio.gather(*runs, return_exceptions=True)
    await _until(lambda: not hanging.open)
    await engine.aclose()


async def test_delegations_never_wait_for_each_others_threads() -> None:
    """A delegating tool holds its thread while its coworker uses a tool of its own."""
    deep = "Action: dig\nAction Input: " + '{"text": "x"}'
    delegates = (
        "Thought: ask\nAction: delegate_work_to_coworker\nAction Input: "
        '{"task": "t", "context": "c", "coworker": "Two"}'
    )

    @tool("dig")
    def dig(text: str) -> str:
        """Dig."""
        return "gold"

    class Two(RecordingLLM):
        """Digs first, then answers; stateless, as many runs share it."""

        async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0.01)
            return "found gold" if "gold" in str(messages) else deep

    class One(RecordingLLM):
        async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            return "Final Answer: rich" if "found gold" in str(messages) else delegates

    one_llm, two_llm = One(), Two()

    def build() -> Crew:
        one_ = Agent(role="One", goal="g", backstory="b", llm=one_llm, allow_delegation=True)
        two_ = Agent(role="Two", goal="g", backstory="b", llm=two_llm, tools=[dig])
        return Crew(
            agents=[one_, two_],
            tasks=[Task(description="d", expected_output="e", agent=one_)],
        )

    engine = Engine(model=one_llm, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", build)])
    results = await asyncio.wait_for(
        asyncio.gather(*(engine.run("crew", {}) for _ in range(8))), 60
    )
    assert {result.raw for result in results} == {"rich"}
    await engine.aclose()


@contextmanager
def _tasks_noted(made: list[asyncio.Task[Any]]) -> Iterator[None]:
    def note(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(asyncio.Task(work, loop=loop, **options))
        return made[-1]

    loop = asyncio.get_running_loop()
    loop.set_task_factory(note)
    try:
        yield
    finally:
        loop.set_task_factory(None)


class _Budget(CallObserver):
    def __init__(self, calls: int) -> None:
        self.left = calls

    def admit(self, call: ModelCall) -> None:
        if not self.left:
            raise PermissionError("no calls are left")
        self.left -= 1


@pytest.mark.parametrize("calls", [0, 1, 2])
@pytest.mark.parametrize("mode", ["auto", "native"])
async def test_a_run_that_is_stopped_leaves_no_error_unhandled(mode: Any, calls: int) -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("crew", lambda: three(model))])
    made: list[asyncio.Task[Any]] = []
    with _tasks_noted(made), pytest.raises(PermissionError, match="no calls are left"):
        await engine.run("crew", INPUTS, calls=_Budget(calls))
    await engine.aclose()
    # asyncio logs such an error when the task is freed.
    assert [task for task in made if task.done() and task._log_traceback] == []


async def test_a_crew_that_ends_the_process_only_ends_its_run() -> None:
    @tool("leave")
    def leave(text: str) -> str:
        """Leave."""
        raise SystemExit(3)

    model = RecordingLLM(lambda a, n: 'Action: leave\nAction Input: {"text": "x"}')

    def build() -> Crew:
        expert = agent(model, tools=[leave], max_retry_limit=0)
        return Crew(agents=[expert], tasks=[task(expert, async_execution=True), task(expert, 2)])

    for mode in ("native", "stock"):
        engine = Engine(model=model, mode=mode, max_stock_threads=2)
        await engine.start([Source("crew", build)])
        with pytest.raises(CrewFailed, match="end the process"):
            await asyncio.wait_for(engine.run("crew", INPUTS), 60)
        await engine.aclose()
