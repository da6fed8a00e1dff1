"""`max_rpm` of crews and agents."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from crewai import Crew
from crewai.agents.agent_builder import base_agent
from crewai.llms.base_llm import BaseLLM

from app.engine import Engine, patches
from app.engine.runtime import request_limit
from app.engine.runtime.request_limit import RequestLimit
from tests.engine.crews import FUNCTIONS, INPUTS, THREE_STEPS, agent, follows_plan, one, task, two
from tests.engine.recording import RecordingLLM, Source, run_engine

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _patched() -> None:
    patches.apply()


def _two_tasks(model: BaseLLM) -> Crew:
    worker = agent(model, max_rpm=1)
    return Crew(agents=[worker], tasks=[task(worker, 1), task(worker, 2)])


# Crews of two requests or more, with a limit of one.
_LIMITED: dict[str, Callable[[BaseLLM], Crew]] = {
    "crew": two(crew_options={"max_rpm": 1}),
    "agent": _two_tasks,
    "steps of a plan": one({"max_rpm": 1, "planning": True}),
}


def _model() -> RecordingLLM:
    return RecordingLLM(follows_plan(*THREE_STEPS), **FUNCTIONS)


@pytest.mark.parametrize("mode", ["native", "stock"])
@pytest.mark.parametrize("limited", list(_LIMITED))
async def test_each_request_above_the_limit_waits_for_the_next_window(
    limited: str, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = []

    def begin_window(self: RequestLimit) -> None:
        windows.append(self)
        reset(self)

    reset = RequestLimit._reset_request_count
    monkeypatch.setattr(RequestLimit, "_reset_request_count", begin_window)
    monkeypatch.setattr(request_limit, "_WINDOW_SECONDS", 0.02)
    model = _model()
    ran = await run_engine(_LIMITED[limited], model, INPUTS, mode)
    assert ran.error is None
    assert max(windows.count(limit) for limit in windows) >= 2


@pytest.mark.parametrize("limited", list(_LIMITED))
async def test_a_native_run_that_waits_can_be_cancelled(
    limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = asyncio.Event()

    class ObservedAsyncio:
        @staticmethod
        async def sleep(seconds: float) -> None:
            waits.set()
            await asyncio.sleep(seconds)

    monkeypatch.setattr(request_limit, "asyncio", ObservedAsyncio)
    model = _model()
    engine = Engine(model=model, mode="native", max_stock_threads=2)
    try:
        await engine.start([Source("crew", lambda: _LIMITED[limited](model))])
        run = asyncio.create_task(engine.run("crew", INPUTS))
        await waits.wait()
        made = len(model.requests)
        if limited != "steps of a plan":
            assert made == 1
            assert not _work_is_under_way(engine), "it holds no thread"
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert len(model.requests) == made
    finally:
        await engine.aclose()


def _work_is_under_way(engine: Engine) -> bool:
    pool = engine._work_threads._pool
    return len(pool._threads) > pool._idle_semaphore._value


async def test_a_crew_of_as_many_tasks_as_its_limit_is_planned() -> None:
    build = two(crew_options={"max_rpm": 2})
    ran = await run_engine(build, RecordingLLM(), INPUTS, "auto")
    assert ran.execution_mode == "plan"


def test_a_limited_crew_starts_no_timer() -> None:
    before = threading.active_count()
    crew, worker = _LIMITED["crew"](RecordingLLM()), agent(RecordingLLM(), max_rpm=3)
    assert type(crew._rpm_controller) is type(worker._rpm_controller) is base_agent.RPMController
    assert threading.active_count() == before
