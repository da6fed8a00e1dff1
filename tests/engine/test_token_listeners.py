"""Each model call of a task, and no other call, gets the token listener of that task."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from crewai import Crew
from crewai.flow.flow import Flow, start
from crewai.llms.base_llm import BaseLLM
from crewai.tasks.conditional_task import ConditionalTask
from crewai.tools import tool

from app.engine import Engine, OnToken, RunObserver, TaskFinished, TaskStarted
from app.engine.llm import listener_of_call
from tests.engine.crews import INPUTS, agent, one, react, task, three, zigzag
from tests.engine.recording import RecordingLLM, Request, Source, hashed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

OUTSIDE = "a call outside of tasks"


class _Listening(RunObserver):
    """An observer that listens to every call, and notes which task each piece is for."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, str]] = []
        self.threads: set[int] = set()

    async def task_started(self, event: TaskStarted) -> None: ...

    async def task_finished(self, event: TaskFinished) -> None: ...

    def token_listener(self, task: TaskStarted) -> OnToken | None:
        return partial(self._note, f"{task.index}")

    def _note(self, index: str, piece: str) -> None:
        self.threads.add(threading.get_ident())
        self.pieces.append((index, piece))


def _streaming(answer: Callable[[Request, int], Any] = hashed) -> RecordingLLM:
    """A model that gets a listener as each call begins, as pooled models do."""

    def streamed(request: Request, nth: int) -> Any:
        listener_of = listener_of_call.get()
        listener = listener_of() if listener_of is not None else None
        if listener is not None:
            listener(request.task or request.messages[0]["content"])
        return answer(request, nth)

    return RecordingLLM(streamed)


async def _run(build: Callable[[], Crew | Flow[Any]], model: BaseLLM, mode: Any) -> _Listening:
    engine = Engine(model=model, mode=mode, max_stock_threads=4)
    await engine.start([Source("crew", build)])
    observer = _Listening()
    await engine.run("crew", INPUTS, observer)
    assert listener_of_call.get() is None, "of the code that called the engine"
    await asyncio.sleep(0)  # pieces from threads have been scheduled
    await engine.aclose()
    assert observer.threads <= {threading.get_ident()}
    return observer


@pytest.mark.parametrize("mode", ["auto", "native"])
async def test_tasks_side_by_side_and_in_turn_get_their_own_listener(mode: Any) -> None:
    for crew, numbers in ((three, (1, 2, 3)), (zigzag, (0, 1, 2, 3, 4))):
        model = _streaming()
        observer = await _run(partial(crew, model), model, mode)
        assert sorted(observer.pieces) == [
            (f"{index}", f"Task {number}: write about tea in 2031.")
            for index, number in enumerate(numbers)
        ]


async def test_a_call_between_tasks_gets_no_listener() -> None:
    model = _streaming()

    def crew() -> Crew:
        first, second = agent(model, 1), agent(model, 2)
        maybe = ConditionalTask(
            description="Only if needed: {topic}",
            expected_output="More on {topic}",
            agent=second,
            condition=lambda _: bool(model.call(OUTSIDE)),
        )
        return Crew(agents=[first, second], tasks=[task(first), maybe])

    observer = await _run(crew, model, "native")
    assert OUTSIDE in [request.messages[0]["content"] for request in model.requests]
    assert [index for index, _ in observer.pieces] == ["0", "1"]
    assert OUTSIDE not in [piece for _, piece in observer.pieces]


async def test_calls_that_threads_of_a_task_make_are_listened_to_on_the_loop() -> None:
    model = _streaming(lambda a, n: react("consult")(a, n) if a.task else "consulted")
    threads: set[int] = set()

    @tool("consult")
    def consult(text: str) -> Any:
        """Call the model."""
        threads.add(threading.get_ident())
        return model.call("consulting")

    observer = await _run(lambda: one({"tools": [consult]})(model), model, "native")
    assert threading.get_ident() not in threads
    task_text = "Task 1: write about tea in 2031."
    assert observer.pieces == [("0", task_text), ("0", "consulting"), ("0", task_text)]


@pytest.mark.parametrize("mode", ["auto", "native"])
async def test_in_a_flow_only_the_tasks_of_its_crews_get_listeners(mode: Any) -> None:
    model = _streaming()

    class Writing(Flow[Any]):
        @start()
        async def write(self) -> str:
            model.call(OUTSIDE)
            for _ in range(2):
                await three(model).akickoff(inputs=dict(INPUTS))
                await model.acall(OUTSIDE)
            return "written"

    observer = await _run(Writing, model, mode)
    # The first task of a flow is the flow's own result.
    assert sorted(observer.pieces) == [
        (f"{index}", f"Task {(index - 1) % 3 + 1}: write about tea in 2031.")
        for index in range(1, 7)
    ]


async def test_stock_crews_do_not_stream() -> None:
    model = _streaming()
    observer = await _run(lambda: three(model), model, "stock")
    assert observer.pieces == []
