"""A run that goes on from tasks that an earlier attempt has finished."""

from collections.abc import Mapping
from typing import Any

import pytest

from app.engine import CrewResult, Engine, Replay, TaskFinished, TaskStarted
from tests.engine.crews import Report, agent, report, task, three
from tests.engine.recording import RecordingLLM, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

INPUTS = {"topic": "rain", "year": 2030}
MODES = [("auto", "plan"), ("native", "native"), ("stock", "stock")]


class _Observer:
    def __init__(self) -> None:
        self.started: list[int] = []
        self.finished: dict[int, TaskFinished] = {}

    async def task_started(self, event: TaskStarted) -> None:
        self.started.append(event.index)

    async def task_finished(self, event: TaskFinished) -> None:
        self.finished[event.index] = event


async def _run(
    mode: Any, build: Any, replays: Mapping[int, Replay], answer: Any = None
) -> tuple[CrewResult, _Observer, int, str]:
    """A run's result, its observer, the number of its model calls, the fingerprint."""
    model = RecordingLLM(answer) if answer else RecordingLLM()
    engine = Engine(model=model, mode=mode, max_stock_threads=4)
    await engine.start([Source("crew", lambda: build(model))])
    before, observer = len(model.requests), _Observer()
    result = await engine.run("crew", INPUTS, observer, replays)
    await engine.aclose()
    return result, observer, len(model.requests) - before, engine.describe("crew").fingerprint


def _replays(observer: _Observer, *indices: int) -> dict[int, Replay]:
    return {
        index: Replay(
            text=(event := observer.finished[index]).text,
            structured=event.structured,
            started_at=event.started_at,
            finished_at=event.finished_at,
        )
        for index in indices
    }


@pytest.mark.parametrize("done", [(0,), (1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize(("mode", "execution_mode"), MODES)
async def test_finished_tasks_are_not_executed_again_and_the_result_is_the_same(
    mode: str, execution_mode: str, done: tuple[int, ...]
) -> None:
    whole, observer, calls, _ = await _run(mode, three, {})
    assert (whole.execution_mode, calls) == (execution_mode, 3)
    rest, observer_again, calls, _ = await _run(mode, three, _replays(observer, *done))
    assert (rest.execution_mode, calls) == (execution_mode, 3 - len(done))
    assert rest.raw == whole.raw
    assert [t.text for t in rest.tasks] == [t.text for t in whole.tasks]
    assert [t.agent for t in rest.tasks] == [t.agent for t in whole.tasks]
    assert [t.replayed for t in rest.tasks] == [index in done for index in range(3)]
    assert not any(t.skipped for t in rest.tasks)
    assert not set(done) & {*observer_again.started, *observer_again.finished}
    for index in done:
        assert rest.tasks[index].finished_at == observer.finished[index].finished_at


@pytest.mark.parametrize("mode", ["native", "stock"])
async def test_structured_output_comes_back_with_its_type(mode: str) -> None:
    def build(model: Any) -> Any:
        from crewai import Crew

        one = agent(model)
        first = task(one, output_pydantic=Report)
        return Crew(agents=[one], tasks=[first, task(one, 2, context=[first])])

    whole, observer, calls, _ = await _run(mode, build, {}, report)
    assert observer.finished[0].structured is not None
    rest, _, calls_again, _ = await _run(mode, build, _replays(observer, 0), report)
    assert calls_again == calls - 1
    assert rest.output.tasks_output[0].pydantic == whole.output.tasks_output[0].pydantic
    unknown = {0: Replay("text alone", None, *_times(observer))}
    again, _, calls_again, _ = await _run(mode, build, unknown, report)
    assert calls_again == calls
    assert not again.tasks[0].replayed


def _times(observer: _Observer) -> tuple[Any, Any]:
    return observer.finished[0].started_at, observer.finished[0].finished_at


@pytest.mark.parametrize("mode", ["auto", "native"])
async def test_usage_so_far_is_reported_with_each_task(mode: str) -> None:
    result, observer, _, _ = await _run(mode, three, {})
    assert observer.finished[2].run_usage == result.usage


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_each_task_reports_its_own_usage_also_if_tasks_run_at_once(mode: str) -> None:
    _, observer, _, _ = await _run(mode, three, {})
    used = [observer.finished[index].usage for index in range(3)]
    assert [(one.successful_requests, one.total_tokens) for one in used] == [(1, 12)] * 3
    sums = [observer.finished[index].run_usage.total_tokens for index in range(3)]
    assert min(sums) < 36
    assert max(sums) == sums[2] == 36
    _, observer, _, _ = await _run(mode, three, _replays(observer, 0, 1))
    (last,) = observer.finished.values()
    assert (last.usage.total_tokens, last.run_usage.total_tokens) == (12, 12)


async def test_the_fingerprint_is_of_the_definition() -> None:
    def renamed(model: Any) -> Any:
        crew = three(model)
        crew.agents[0].goal += " quickly"
        return crew

    *_, one = await _run("auto", three, {})
    *_, same = await _run("native", three, {})
    *_, other = await _run("auto", renamed, {})
    assert one == same != other
