"""Code of crews that blocks: factories in threads, and threads that outlive their runs."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest
from crewai import Crew
from crewai.flow.flow import Flow, start
from crewai.llms.base_llm import BaseLLM
from crewai.tools import tool

from app.engine import Engine, ThreadsExhausted
from app.engine.runtime.model_hooks import instrument_model
from app.engine.runtime.threads import AbandonedThreads, WorkThreads
from app.logs import lines_of_run
from tests.engine.blocking import SECONDS, Gate, crew_through
from tests.engine.crews import INPUTS, agent, one, task
from tests.engine.recording import RecordingLLM, Source
from tests.storage.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_of_caller: contextvars.ContextVar[str] = contextvars.ContextVar("of_caller", default="")


def _flow_through(gate: Gate) -> type[Flow[Any]]:
    class Waiting(Flow[Any]):
        @start()
        def wait(self) -> str:
            gate.pass_through()
            return "done"

    return Waiting


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_factory_may_block_while_the_event_loop_continues(mode: Any) -> None:
    """One factory ends only when another crew's run, on the same loop, has ended."""
    model, gate = RecordingLLM(), Gate()
    contexts: list[str] = []

    def blocking() -> Crew:
        contexts.append(_of_caller.get())
        gate.pass_through()
        return one()(model)

    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("slow", blocking), Source("other", lambda: one()(model))])
    gate.close()
    _of_caller.set("the run")
    contexts.clear()
    runs = [asyncio.create_task(engine.run("slow", INPUTS)) for _ in range(10)]
    await gate.reached()
    assert (await engine.run("other", INPUTS)).raw
    assert contexts == ["the run"], "a factory never executes twice at once"
    gate.opened.set()
    assert all(result.raw for result in await asyncio.gather(*runs))
    assert contexts == ["the run"] * 10
    assert engine.abandoned_threads == 0
    await engine.aclose()


async def test_a_factory_may_block_at_start() -> None:
    gate = Gate()
    gate.close()

    def blocking() -> Crew:
        gate.pass_through()
        return one()(RecordingLLM())

    engine = Engine(model=RecordingLLM(), mode="native", max_stock_threads=2)
    starting = asyncio.create_task(engine.start([Source("slow", blocking)]))
    await gate.reached()
    assert not starting.done()
    gate.opened.set()
    await starting
    await engine.aclose()


async def test_a_static_crews_plan_runs_without_a_thread() -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: one()(model), static=True)])
    await engine.aclose()
    engine._closed = False  # its threads are closed: any use of one raises
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"


async def test_a_build_that_hangs_is_abandoned_and_delays_only_its_crew() -> None:
    model, gate = RecordingLLM(), Gate()

    def blocking() -> Crew:
        gate.pass_through()
        return one()(model)

    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    await engine.start([Source("slow", blocking), Source("other", lambda: one()(model))])
    gate.close()
    hung, waiting = (asyncio.create_task(engine.run("slow", INPUTS)) for _ in range(2))
    await gate.reached()
    for run in (hung, waiting):
        run.cancel()
    await asyncio.gather(hung, waiting, return_exceptions=True)
    assert engine.abandoned_threads == 1, "the second build had not begun"
    assert (await engine.run("other", INPUTS)).raw
    gate.opened.set()
    await until(lambda: engine.abandoned_threads == 0)
    assert (await engine.run("slow", INPUTS)).raw
    await engine.aclose()


@pytest.mark.parametrize("way", ["native", "native tools", "stock", "flow"])
async def test_abandoned_threads_are_counted_logged_once_and_bound_new_runs(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate, model = Gate(), RecordingLLM()
    build: Callable[[], Crew | Flow[Any]] = (
        _flow_through(gate)
        if way == "flow"
        else crew_through(gate, native_tools=way == "native tools")
    )
    inputs = {} if way == "flow" else INPUTS
    engine = Engine(
        model=model,
        mode="stock" if way == "stock" else "auto",
        max_stock_threads=4,
        max_abandoned_threads=1,
    )
    await engine.start([Source("waiting", build)])
    gate.close()
    run_id = uuid4()
    with lines_of_run(run_id, "waiting"):
        run = asyncio.create_task(engine.run("waiting", inputs))
    await gate.reached()
    engine.check_threads("waiting")
    with caplog.at_level(logging.WARNING, "app.engine"):
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    assert engine.abandoned_threads == 1
    step = {"stock": "its kickoff", "flow": "its flow"}.get(way, "its tool wait_here")
    records = [record for record in caplog.records if record.name == AbandonedThreads.__module__]
    assert [record.getMessage() for record in records] == [
        f"Run {run_id} of crew waiting has ended, but {step} still executes in a thread, which "
        "Python can't stop (abandoned threads: 1, MAX_ABANDONED_THREADS=1)"
    ]
    with pytest.raises(ThreadsExhausted, match="MAX_ABANDONED_THREADS=1"):
        engine.check_threads("waiting")
    gate.entered.clear()
    later = asyncio.create_task(engine.run("waiting", inputs))
    await asyncio.sleep(0)
    assert not gate.entered.is_set()
    gate.opened.set()
    assert (await later).raw == "done"
    assert engine.abandoned_threads == 0
    engine.check_threads("waiting")
    await engine.aclose()


async def test_a_nested_step_is_counted_until_it_ends() -> None:
    gate, abandoned = Gate(), AbandonedThreads(4)
    threads = WorkThreads(1, abandoned)
    loop = asyncio.get_running_loop()

    def delegate() -> Future[None]:
        return asyncio.run_coroutine_threadsafe(threads.run(gate.pass_through), loop)

    gate.close()
    nested = await threads.run(delegate)
    await gate.reached()
    nested.cancel()
    await until(lambda: len(abandoned) == 1)
    gate.opened.set()
    await until(lambda: len(abandoned) == 0)
    threads.close()


async def test_plans_run_while_too_many_threads_are_abandoned() -> None:
    gate, model = Gate(), RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=4, max_abandoned_threads=1)
    await engine.start(
        [Source("waiting", crew_through(gate)), Source("plan", lambda: one()(model))]
    )
    gate.close()
    run = asyncio.create_task(engine.run("waiting", INPUTS))
    await gate.reached()
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    assert engine.abandoned_threads == 1
    engine.check_threads("plan")
    assert (await engine.run("plan", INPUTS)).execution_mode == "plan"
    gate.opened.set()
    await until(lambda: engine.abandoned_threads == 0)
    await engine.aclose()


async def test_a_name_of_a_tool_that_the_model_made_up_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """CrewAI waits for the tool that is meant; its name as the model wrote it is user data."""
    gate = Gate()

    @tool("wait here")
    def wait_here(text: str) -> str:
        """Wait."""
        gate.pass_through()
        return "done"

    model = RecordingLLM(lambda *_: 'Action: wait heres\nAction Input: {"text": "x"}')
    engine = Engine(model=model, mode="native", max_stock_threads=2)

    def build() -> Crew:
        expert = agent(model, tools=[wait_here])
        return Crew(agents=[expert], tasks=[task(expert)])

    await engine.start([Source("crew", build)])
    gate.close()
    with lines_of_run(uuid4(), "crew"):
        run = asyncio.create_task(engine.run("crew", INPUTS))
    await gate.reached()
    with caplog.at_level(logging.WARNING, "app.engine"):
        run.cancel()
        await asyncio.gather(run, return_exceptions=True)
    (record,) = (record for record in caplog.records if record.name == AbandonedThreads.__module__)
    assert "but a tool still executes" in record.getMessage()
    gate.opened.set()
    await until(lambda: engine.abandoned_threads == 0)
    await engine.aclose()


def test_a_model_class_is_instrumented_once_by_many_threads() -> None:
    """A thread that finds the class known must find it instrumented, too."""
    entered, release = threading.Event(), threading.Event()

    class Slow(type(BaseLLM)):
        def __setattr__(cls, name: str, value: Any) -> None:
            if name == "call" and not entered.is_set():
                entered.set()
                release.wait(SECONDS)
            super().__setattr__(name, value)

    class Model(BaseLLM, metaclass=Slow):
        def call(self, *args: Any, **kwargs: Any) -> str:
            return ""

    own = Model.call
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(instrument_model, Model)
        assert entered.wait(SECONDS)
        second = threads.submit(instrument_model, Model)
        second.add_done_callback(lambda _: seen.append(Model.call))
        seen: list[Any] = []
        release.set()
        first.result(SECONDS)
        second.result(SECONDS)
    assert seen[0] is not own
    assert Model.call.__wrapped__ is own
