"""Flows: CrewAI's own, in threads of theirs; the crews inside of them on our engine."""

import asyncio
import contextvars
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, ClassVar

import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, and_, listen, or_, router, start
from crewai.flow.human_feedback import human_feedback
from crewai.flow.persistence import persist
from crewai.llms.base_llm import BaseLLM
from crewai.types.usage_metrics import UsageMetrics
from pydantic import BaseModel

from app.engine import (
    CrewBroken,
    CrewFailed,
    Engine,
    InputRefused,
    ModelError,
    NoResult,
    StepFinished,
    TaskFinished,
    TaskStarted,
)
from app.engine.flows import crew_locks
from app.engine.patches import removed
from tests.engine.crews import (
    CASES,
    INPUTS,
    Case,
    agent,
    conditional,
    one,
    task,
    three,
    two,
)
from tests.engine.recording import RecordingLLM, Source, grouped, run_reference, shown

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Brief(BaseModel):
    topic: str = "tea"
    year: int = 2031
    notes: list[str] = []


class _Notes:
    """An observer that keeps its events."""

    def __init__(self) -> None:
        self.events: list[TaskStarted | TaskFinished] = []
        self.loops: set[int] = set()

    async def task_started(self, event: TaskStarted) -> None:
        self.loops.add(id(asyncio.get_running_loop()))
        self.events.append(event)

    async def task_finished(self, event: TaskFinished) -> None:
        self.loops.add(id(asyncio.get_running_loop()))
        self.events.append(event)

    def named(self, kind: type) -> list[tuple[int, str]]:
        return [(event.index, event.name) for event in self.events if isinstance(event, kind)]


@asynccontextmanager
async def _serving(
    build: Callable[[], Flow[Any]], model: BaseLLM | None = None, mode: Any = "auto"
) -> AsyncIterator[Engine]:
    engine = Engine(model=model or RecordingLLM(), mode=mode, max_stock_threads=64)
    await engine.start([Source("flow", build)])
    try:
        yield engine
    finally:
        await engine.aclose()


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - conditions are of other people's making
            await asyncio.sleep(0.005)


def _named(model: BaseLLM, *names: str) -> Crew:
    """A crew of one agent with a task for each of the names."""
    expert = agent(model)
    tasks = [task(expert, number, name=name) for number, name in enumerate(names)]
    return Crew(agents=[expert], tasks=tasks)


def _two_crews(model: BaseLLM) -> type[Flow[Brief]]:
    class TwoCrews(Flow[Brief]):
        @start()
        def research(self) -> Any:
            return _named(model, "facts", "sources").kickoff(inputs=self._given())

        @listen(research)
        async def write(self, found: Any) -> str:
            article = await _named(model, "article").akickoff(inputs=self._given())
            again = await _named(model, "article").kickoff_async(inputs=self._given())
            return f"{found.raw} | {article.raw} | {again.raw}"

        def _given(self) -> dict[str, Any]:
            return {"topic": self.state.topic, "year": self.state.year}

    return TwoCrews


# What a flow is


async def test_a_flow_is_described_by_its_state_and_its_result() -> None:
    async with _serving(_two_crews(RecordingLLM())) as engine:
        found = engine.describe("flow")
        assert (found.execution_mode, found.inputs) == ("flow", ())
        assert found.defaults == {
            "topic": "tea",
            "year": 2031,
            "notes": [],
            "crewai_trigger_payload": None,
        }
        assert [task.name for task in found.tasks] == ["result"]
        assert found.tasks[0].agent == "TwoCrews"
        assert found.fingerprint == engine.fingerprint("flow") == ""


async def test_the_fields_of_a_dict_as_state_are_inputs() -> None:
    class Loose(Flow):  # type: ignore[type-arg]
        initial_state: ClassVar[Any] = {"topic": "tea", "deep": {"a": 1}}

        @start()
        def give(self) -> Any:
            return {key: value for key, value in self.state.items() if key != "id"}

    async with _serving(Loose) as engine:
        assert engine.describe("flow").defaults == {
            "topic": "tea",
            "deep": {"a": 1},
            "crewai_trigger_payload": None,
        }
        result = await engine.run("flow", {"topic": "coffee", "more": [1, None]})
        assert json.loads(result.raw) == {"topic": "coffee", "deep": {"a": 1}, "more": [1, None]}


async def test_inputs_go_into_the_state_and_the_payload_to_the_first_method() -> None:
    class Triggered(Flow[Brief]):
        @start()
        def give(self, crewai_trigger_payload: Any = None) -> Any:
            return [self.state.topic, self.state.year, crewai_trigger_payload]

    async with _serving(Triggered) as engine:
        result = await engine.run(
            "flow", {"topic": "coffee", "year": "7", "crewai_trigger_payload": {"a": [1]}}
        )
        assert json.loads(result.raw) == ["coffee", 7, {"a": [1]}]
        assert json.loads((await engine.run("flow", {})).raw) == ["tea", 2031, None]


@pytest.mark.parametrize(
    ("inputs", "field"),
    [({"year": "soon"}, "year"), ({"notes": [1]}, "notes.0"), ({"id": "another's"}, "id")],
)
async def test_an_input_that_the_state_cant_hold_is_refused_by_name(
    inputs: dict[str, Any], field: str
) -> None:
    async with _serving(_two_crews(RecordingLLM())) as engine:
        with pytest.raises(InputRefused) as refused:
            engine.check_inputs("flow", inputs)
        assert refused.value.field == field
        assert refused.value.problem
        with pytest.raises(InputRefused):
            await engine.run("flow", inputs)


async def test_unsupported_flows_stop_the_start_with_one_line() -> None:
    class NeedsFeedback(Flow[Brief]):
        @start()
        @human_feedback(message="Is it good?")
        def draft(self) -> str:
            return "a draft"

    with pytest.raises(CrewBroken, match=r"flow: method draft has human_feedback"):
        async with _serving(NeedsFeedback):
            pass
    shared = _two_crews(RecordingLLM())()
    with pytest.raises(CrewBroken, match="same flow or state twice"):
        async with _serving(lambda: shared):
            pass
    with pytest.raises(CrewBroken, match="returns a str, not a crew"):
        async with _serving(lambda: "a flow"):
            pass


# What a run of a flow gives


@pytest.mark.parametrize("mode", ["auto", "stock"])
async def test_outputs_are_the_result_and_each_inner_task(mode: Any) -> None:
    model, notes = RecordingLLM(), _Notes()
    async with _serving(_two_crews(model), model, mode) as engine:
        result = await engine.run("flow", {"topic": "coffee"}, notes)
    names = ["result", "facts", "sources", "article", "article_2"]
    assert [outcome.name for outcome in result.tasks] == names
    texts = {outcome.name: outcome.text for outcome in result.tasks}
    parts = [texts[name] for name in ("sources", "article", "article_2")]
    assert result.raw == texts["result"] == " | ".join(parts)
    assert result.execution_mode == "flow"
    assert [output.raw for output in result.output.tasks_output] == [
        texts[name] for name in names[1:]
    ]
    for outcome in result.tasks:
        assert not outcome.skipped
        assert outcome.started_at is not None
        assert outcome.finished_at is not None
        assert outcome.started_at <= outcome.finished_at
    assert result.tasks[1].agent == "Expert 1 for coffee"

    assert notes.loops == {id(asyncio.get_running_loop())}
    in_order = list(enumerate(names))
    assert notes.named(TaskStarted) == in_order
    assert notes.named(TaskFinished) == [*in_order[1:], in_order[0]]
    reported = {event.name: event.text for event in notes.events if isinstance(event, TaskFinished)}
    assert reported == texts


async def test_steps_of_inner_crews_are_reported_as_steps_of_the_runs_tasks() -> None:
    model = RecordingLLM()
    steps: list[tuple[int, str, str]] = []

    async def on_step(step: StepFinished) -> None:
        steps.append((step.index, step.name, step.result))

    async with _serving(_two_crews(model), model) as engine:
        result = await engine.run("flow", {}, on_step=on_step)
    assert steps == [
        (index, outcome.name, outcome.text)
        for index, outcome in enumerate(result.tasks)
        if outcome.name != "result"
    ]


@pytest.mark.parametrize("mode", ["auto", "stock"])
async def test_usage_is_counted_across_inner_crews_and_calls_of_the_flows_own(mode: Any) -> None:
    model = RecordingLLM()
    seen: list[Any] = []

    class Counting(Flow[Brief]):
        @start()
        def work(self) -> str:
            crew = two()(model)
            seen.append(crew.kickoff(inputs=dict(INPUTS)).token_usage)
            seen.append(crew.usage_metrics)
            answer = str(model.call("What else?"))
            seen.append(self.usage_metrics)
            return answer

    async with _serving(Counting, model, mode) as engine:
        for _ in range(2):
            result = await engine.run("flow", {})
            assert (result.usage.successful_requests, result.usage.total_tokens) == (3, 36)
            assert result.output.token_usage == UsageMetrics(**asdict(result.usage))
    of_crew = UsageMetrics(
        prompt_tokens=20, completion_tokens=4, total_tokens=24, successful_requests=2
    )
    of_flow = UsageMetrics(
        prompt_tokens=30, completion_tokens=6, total_tokens=36, successful_requests=3
    )
    assert seen == [of_crew, of_crew, of_flow] * 2


class _Point(BaseModel):
    x: int = 1


@pytest.mark.parametrize(
    ("given", "raw"),
    [
        ("text", "text"),
        (_Point(), '{"x":1}'),
        ({"a": [_Point(), None, "ü"]}, '{"a":[{"x":1},null,"ü"]}'),
        ([1, 2.5, True], "[1,2.5,true]"),
        (0, "0"),
        (None, '{"topic":"tea","year":2031,"notes":["done"]}'),
    ],
)
async def test_the_result_is_what_kickoff_returns_as_text(given: Any, raw: str) -> None:
    class Gives(Flow[Brief]):
        @start()
        def give(self) -> Any:
            self.state.notes.append("done")
            return given

    async with _serving(Gives) as engine:
        assert (await engine.run("flow", {})).raw == raw
    assert Gives().kickoff() == given


async def test_an_empty_result_is_no_result() -> None:
    class Blank(Flow[Brief]):
        @start()
        def give(self) -> str:
            return " \n"

    async with _serving(Blank) as engine:
        with pytest.raises(NoResult):
            await engine.run("flow", {})


async def test_routers_joins_and_loops_go_as_crewai_has_them() -> None:
    """The same flow by stock CrewAI and by the engine: the same path, the same calls."""

    def build(model: BaseLLM) -> Flow[Any]:
        class Winding(Flow[Brief]):
            @start()
            def first(self) -> str:
                return str(one()(model).kickoff(inputs=dict(INPUTS)))

            @start()
            async def second(self) -> str:
                return str(await two()(model).akickoff(inputs=dict(INPUTS)))

            @listen(and_(first, second))
            def joined(self) -> None:
                self.state.notes.append("joined")

            @router(or_(joined, "again"))
            def judge(self) -> str:
                self.state.notes.append("judged")
                return "retry" if len(self.state.notes) < 4 else "good"

            @router("retry")
            def redo(self) -> str:
                return "again"

            @listen("good")
            def finish(self) -> Any:
                text = one()(model).kickoff(inputs={"topic": "end", "year": 1}).raw
                return {"notes": self.state.notes, "text": text}

        return Winding()

    stock, ours = RecordingLLM(), RecordingLLM()
    with removed():
        expected = await asyncio.to_thread(
            contextvars.Context().run, lambda: build(stock).kickoff(inputs={"topic": "x"})
        )
    async with _serving(lambda: build(ours), ours) as engine:
        result = await engine.run("flow", {"topic": "x"})
    assert json.loads(result.raw) == expected
    assert expected["notes"] == ["joined", "judged", "judged", "judged"]
    assert grouped(ours.requests) == grouped(stock.requests)


# The crews inside of flows


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_a_crew_inside_a_flow_runs_as_stock_does(case: Case) -> None:
    stock, ours = _model(case), _model(case)
    reference = await asyncio.to_thread(run_reference, case.build, stock, case.inputs)
    seen: dict[str, Any] = {}

    class Around(Flow[Brief]):
        @start()
        def work(self) -> str:
            try:
                output = case.build(ours).kickoff(inputs=dict(case.inputs))
            except Exception as error:
                seen["error"] = str(error)
                return "failed"
            seen["output"] = shown(output)
            return "fine"

    async with _serving(Around, ours) as engine:
        await engine.run("flow", {})
    assert grouped(ours.requests) == reference.calls
    assert seen.get("output") == reference.output
    assert seen.get("error") == reference.error


def _model(case: Case) -> RecordingLLM:
    return RecordingLLM(case.answer, **json.loads(json.dumps(dict(case.model))))


_KICKOFFS: dict[str, Callable[[Crew], Awaitable[Any]]] = {
    "akickoff": lambda crew: crew.akickoff(inputs=dict(INPUTS)),
    "kickoff_async": lambda crew: crew.kickoff_async(inputs=dict(INPUTS)),
    "kickoff": lambda crew: _at_once(crew.kickoff(inputs=dict(INPUTS))),
    "kickoff_for_each": lambda crew: _at_once(crew.kickoff_for_each([dict(INPUTS)])[0]),
    "akickoff_for_each": lambda crew: _first(crew.akickoff_for_each([dict(INPUTS)])),
}


async def _at_once(value: Any) -> Any:
    return value


async def _first(values: Awaitable[Any]) -> Any:
    return (await values)[0]


@pytest.mark.parametrize("mode", ["auto", "stock"])
@pytest.mark.parametrize("kickoff", _KICKOFFS)
async def test_async_methods_kick_crews_off_by_every_method_of_crewai(
    kickoff: str, mode: Any
) -> None:
    model = RecordingLLM()
    reference = await asyncio.to_thread(run_reference, three, RecordingLLM(), INPUTS)

    class Async(Flow[Brief]):
        @start()
        async def work(self) -> Any:
            return await _KICKOFFS[kickoff](three(model))

    async with _serving(Async, model, mode) as engine:
        result = await engine.run("flow", {})
    assert reference.output is not None
    assert result.raw == reference.output["raw"]
    assert grouped(model.requests) == reference.calls
    assert [t.name for t in result.tasks] == ["result", "task_1", "task_2", "task_3"]


class _Loops(RecordingLLM):
    """Notes on which threads its calls are made."""

    _threads: list[str]

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "made_by", [])

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        self.made_by.append(threading.current_thread())
        return await super().acall(*args, **kwargs)


async def test_inner_crews_call_their_models_on_the_engines_event_loop() -> None:
    model = _Loops()
    async with _serving(_two_crews(model), model) as engine:
        await engine.run("flow", {})
    assert model.made_by == [threading.current_thread()] * 4


async def test_agents_that_name_no_model_get_the_deployments() -> None:
    model = RecordingLLM()

    class Plain(Flow[Brief]):
        @start()
        def work(self) -> Any:
            expert = Agent(role="Expert", goal="g", backstory="b")
            work = Task(description="d", expected_output="e", agent=expert)
            crew = Crew(agents=[expert], tasks=[work]).kickoff()
            alone = Agent(role="Alone", goal="g", backstory="b").kickoff("What is new?")
            return [crew.raw, alone.raw]

    async with _serving(Plain, model) as engine:
        result = await engine.run("flow", {})
    assert len(model.requests) == 2
    assert json.loads(result.raw) == [f"answer {request.digest}" for request in model.requests]


async def test_a_crew_may_be_kicked_off_again_and_is_as_the_flow_made_it() -> None:
    model = RecordingLLM()
    reported: list[str] = []

    class Twice(Flow[Brief]):
        @start()
        def work(self) -> Any:
            crew = two(second={"output_file": "report.md"})(model)
            crew.before_kickoff_callbacks = [lambda inputs: {**inputs, "topic": "changed"}]
            crew.task_callback = lambda output: reported.append(output.raw)
            first = crew.kickoff(inputs=dict(INPUTS)).raw
            assert first == crew.tasks[1].output.raw
            assert crew.tasks[1].output_file == "report.md"
            assert crew.agents[0].executor_class.__module__.startswith("crewai.")
            return [first, crew.kickoff(inputs=dict(INPUTS)).raw]

    async with _serving(Twice, model) as engine:
        result = await engine.run("flow", {})
    first, second = json.loads(result.raw)
    assert first == second
    assert len(reported) == 4
    assert all("changed" in request.task for request in model.requests)
    assert [t.name for t in result.tasks] == [
        "result",
        "task_1",
        "report",
        "task_1_2",
        "report_2",
    ]


async def test_a_crew_that_runs_share_works_for_one_at_a_time() -> None:
    model = _Slow()
    shared = three(model)

    class Sharing(Flow[Brief]):
        @start()
        def work(self) -> Any:
            return shared.kickoff(inputs=self._given()).raw

        @start()
        async def too(self) -> Any:
            return (await shared.akickoff(inputs=self._given())).raw

        def _given(self) -> dict[str, Any]:
            return {"topic": self.state.topic, "year": self.state.year}

    async with _serving(Sharing, model) as engine:
        results = await asyncio.gather(
            *(engine.run("flow", {"topic": f"value-{n}-end"}) for n in range(10))
        )
    for number, result in enumerate(results):
        assert {v for t in result.tasks for v in _VALUE.findall(t.text)} == {str(number)}


async def test_who_waits_for_a_shared_crew_can_be_cancelled() -> None:
    model = _Hanging()
    shared = one()(model)
    over = threading.Semaphore(0)

    class Sharing(Flow[Brief]):
        @start()
        def work(self) -> Any:
            try:
                return shared.kickoff(inputs=dict(INPUTS)).raw
            finally:
                over.release()

        @start()
        async def too(self) -> Any:
            try:
                return (await shared.akickoff(inputs=dict(INPUTS))).raw
            finally:
                over.release()

    async with _serving(Sharing, model) as engine:
        runs = [asyncio.create_task(engine.run("flow", {})) for _ in range(3)]
        await _until(lambda: len(model.open) == 1 and len(crew_locks._waiting) == 5)
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        for _ in range(6):
            assert await asyncio.to_thread(over.acquire, timeout=10)
    assert not model.open
    await _until(lambda: not crew_locks._locked and not crew_locks._waiting)


async def test_a_locked_crew_is_an_error_where_waiting_for_it_would_deadlock() -> None:
    model = RecordingLLM()

    class Tangled(Flow[Brief]):
        @start()
        async def work(self) -> Any:
            crew = one()(model)
            first = asyncio.create_task(crew.akickoff(inputs=dict(INPUTS)))
            await asyncio.sleep(0)
            try:
                crew.kickoff(inputs=dict(INPUTS))
            finally:
                await first

    async with _serving(Tangled, model) as engine:
        with pytest.raises(CrewFailed, match="the crew runs already"):
            await asyncio.wait_for(engine.run("flow", {}), 20)


async def test_a_crew_that_streams_gives_its_result_without_changing_shared_models() -> None:
    model = RecordingLLM()

    class Streaming(Flow[Brief]):
        @start()
        def work(self) -> Any:
            streaming = two(crew_options={"stream": True})(model).kickoff(inputs=dict(INPUTS))
            assert list(streaming) == []
            return streaming.result

        @listen(work)
        async def more(self, before: Any) -> Any:
            crew = two(crew_options={"stream": True})(model)
            streaming = await crew.akickoff(inputs=dict(INPUTS))
            assert [chunk async for chunk in streaming] == []
            assert streaming.result.raw == before.raw
            return before

    async with _serving(Streaming, model) as engine:
        result = await engine.run("flow", {})
    assert result.raw.startswith("answer ")
    assert not model.stream


async def test_skipped_tasks_of_inner_crews_are_reported_as_skipped() -> None:
    model = RecordingLLM()

    class Skipping(Flow[Brief]):
        @start()
        def work(self) -> Any:
            return conditional(False)(model).kickoff(inputs=dict(INPUTS))

    async with _serving(Skipping, model) as engine:
        result = await engine.run("flow", {})
    assert [t.skipped for t in result.tasks] == [False, False, True, False]


@pytest.mark.parametrize("mode", ["auto", "stock"])
async def test_nothing_is_written_where_an_inner_crew_says(mode: Any, tmp_path: Any) -> None:
    model = RecordingLLM()
    file, log = tmp_path / "out.md", str(tmp_path / "log.txt")

    class Writing(Flow[Brief]):
        @start()
        def work(self) -> Any:
            task_options = {"output_file": str(file).lstrip("/")}
            crew = one(None, task_options, {"output_log_file": log})(model)
            raw = crew.kickoff(inputs=dict(INPUTS)).raw
            assert crew.output_log_file == log
            return raw

    async with _serving(Writing, model, mode=mode) as engine:
        result = await engine.run("flow", {})
    assert [t.name for t in result.tasks] == ["result", "out"]
    assert not file.exists()
    assert not list(tmp_path.iterdir())


# What goes wrong


async def test_a_method_that_raises_fails_the_run_by_its_own_words() -> None:
    class Raising(Flow[Brief]):
        @start()
        def work(self) -> None:
            raise LookupError("no such file: /srv/secret/list.txt")

    async with _serving(Raising) as engine:
        with pytest.raises(CrewFailed, match="LookupError: no such file") as caught:
            await engine.run("flow", {})
        assert "/srv" not in str(caught.value)


async def test_a_model_that_fails_inside_a_flow_is_a_model_error() -> None:
    model = RecordingLLM(lambda a, n: RuntimeError("quota is used up"))
    async with _serving(_two_crews(model), model) as engine:
        with pytest.raises(ModelError, match="quota is used up"):
            await engine.run("flow", {})


async def test_a_flow_may_go_on_after_a_crew_that_failed() -> None:
    model = RecordingLLM(lambda a, n: RuntimeError("quota is used up"))

    class Patient(Flow[Brief]):
        @start()
        def work(self) -> str:
            try:
                return str(_named(model, "facts", "sources").kickoff(inputs=dict(INPUTS)).raw)
            except RuntimeError:
                return "no facts"

    async with _serving(Patient, model) as engine:
        result = await engine.run("flow", {})
    assert result.raw == "no facts"
    assert [(t.name, t.skipped) for t in result.tasks] == [
        ("result", False),
        ("facts", True),
        ("sources", True),
    ]


async def test_an_error_of_the_observer_fails_the_run_with_that_error() -> None:
    class Full(Exception):
        pass

    class Observer(_Notes):
        async def task_finished(self, event: TaskFinished) -> None:
            raise Full("no space left")

    model = RecordingLLM()
    async with _serving(_two_crews(model), model) as engine:
        with pytest.raises(Full, match="no space left"):
            await engine.run("flow", {}, Observer())
    assert len(model.requests) == 1


async def test_a_crew_with_human_input_is_refused_inside_a_flow() -> None:
    model = RecordingLLM()

    class Questioning(Flow[Brief]):
        @start()
        def work(self) -> Any:
            return one(task_options={"human_input": True})(model).kickoff(inputs=dict(INPUTS))

    async with _serving(Questioning, model) as engine:
        with pytest.raises(CrewBroken, match="human_input"):
            await engine.run("flow", {})
    assert model.requests == []


async def test_a_flow_never_reads_from_the_servers_terminal() -> None:
    class Child(Flow[Brief]):
        @start()
        @human_feedback(message="Is it good?")
        def draft(self) -> str:
            return "a draft"

    class Questioning(Flow[Brief]):
        @start()
        def work(self) -> Any:
            return {"answer": self.ask("Who are you?")}

        @listen(work)
        def child(self) -> Any:
            return Child().kickoff()

    async with _serving(Questioning) as engine:
        with pytest.raises(CrewBroken, match="requires human feedback"):
            await engine.run("flow", {})


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_flow_that_ends_the_process_only_ends_its_run(is_async: bool) -> None:
    class Leaving(Flow[Brief]):
        if is_async:

            @start()
            async def work(self) -> None:
                raise SystemExit(3)
        else:

            @start()
            def work(self) -> None:
                raise SystemExit(3)

    async with _serving(Leaving) as engine:
        with pytest.raises(CrewFailed, match="end the process"):
            await asyncio.wait_for(engine.run("flow", {}), 20)


async def test_a_flow_that_cancels_itself_fails() -> None:
    class Giving(Flow[Brief]):
        @start()
        async def up(self) -> None:
            raise asyncio.CancelledError

    async with _serving(Giving) as engine:
        with pytest.raises(CrewFailed, match="cancelled itself"):
            await asyncio.wait_for(engine.run("flow", {}), 20)


# Many at once, and cancelled ones


_VALUE = re.compile(r"value-(\d+)-end")


class _Slow(RecordingLLM):
    """Answers with every value that it was sent, some calls later than others."""

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(hash(str(messages)) % 7 / 1000)
        return self.call(messages)

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self._track_token_usage_internal({"prompt_tokens": 3, "total_tokens": 3})
        return "I saw " + " ".join(f"value-{v}-end" for v in _VALUE.findall(str(messages)))


@pytest.mark.parametrize(("mode", "runs"), [("auto", 50), ("stock", 10)])
async def test_interleaved_runs_hold_only_their_own_inputs(mode: Any, runs: int) -> None:
    model = _Slow()

    @persist()
    class Mixed(Flow):  # type: ignore[type-arg]
        initial_state: ClassVar[Any] = {"topic": "", "seen": []}

        @start()
        def first(self) -> str:
            self.state["seen"].append(self.state["topic"])
            return two()(model).kickoff(inputs=self._given()).raw

        @start()
        async def second(self) -> str:
            self.state["seen"].append(self.state["topic"])
            return (await three(model).akickoff(inputs=self._given())).raw

        @listen(and_(first, second))
        def give(self) -> Any:
            assert self.persistence is not None
            kept = self.persistence.load_state(self.flow_id)
            return {"seen": self.state["seen"], "kept": kept}

        def _given(self) -> dict[str, Any]:
            return {"topic": self.state["topic"], "year": 1}

    async with _serving(Mixed, model, mode) as engine:
        results = await asyncio.gather(
            *(engine.run("flow", {"topic": f"value-{n}-end"}) for n in range(runs))
        )
    for number, result in enumerate(results):
        assert len(result.tasks) == 6
        for outcome in result.tasks:
            assert set(_VALUE.findall(outcome.text)) == {str(number)}
        given = json.loads(result.raw)
        assert len(given["seen"]) == 2
        assert given["kept"]["topic"] == f"value-{number}-end"
        assert result.usage.total_tokens == 15


async def test_thirty_flows_are_in_their_sync_methods_at_once() -> None:
    """CrewAI's own event loop has six threads for all of them on two cores."""
    everyone = threading.Barrier(30)

    class Meeting(Flow[Brief]):
        @start()
        def wait(self) -> str:
            everyone.wait(20)
            return "met"

    async with _serving(Meeting) as engine:
        results = await asyncio.gather(*(engine.run("flow", {}) for _ in range(30)))
    assert {result.raw for result in results} == {"met"}


class _Hanging(RecordingLLM):
    """Calls that never answer, and know when they are given up."""

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


@pytest.mark.parametrize("kickoff", ["sync", "async", "sync in an async method"])
async def test_a_cancel_closes_the_model_calls_of_inner_crews(kickoff: str) -> None:
    model = _Hanging()
    ended = threading.Event()

    class Hung(Flow[Brief]):
        @start()
        def begin(self) -> None: ...

        @listen(begin)
        def in_a_thread(self) -> Any:
            if kickoff != "sync":
                return "nothing"
            try:
                return three(model).kickoff(inputs=dict(INPUTS))
            finally:
                ended.set()

        @listen(begin)
        async def on_a_loop(self) -> Any:
            if kickoff == "sync":
                return "nothing"
            try:
                if kickoff == "async":
                    return await three(model).akickoff(inputs=dict(INPUTS))
                return three(model).kickoff(inputs=dict(INPUTS))
            finally:
                ended.set()

    async with _serving(Hung, model) as engine:
        run = asyncio.create_task(engine.run("flow", {}))
        await _until(lambda: len(model.open) == 2)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await _until(lambda: not model.open)
        await asyncio.to_thread(ended.wait, 10)
        assert ended.is_set()


async def test_a_cancel_ends_what_an_async_method_waits_for() -> None:
    waiting, given_up = threading.Event(), threading.Event()

    class Waiting(Flow[Brief]):
        @start()
        async def wait(self) -> None:
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()

    async with _serving(Waiting) as engine:
        run = asyncio.create_task(engine.run("flow", {}))
        await asyncio.to_thread(waiting.wait, 10)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        await asyncio.to_thread(given_up.wait, 10)
        assert given_up.is_set()


async def test_a_cancelled_flow_in_a_sync_method_calls_no_more_models() -> None:
    release, inside, over = threading.Event(), threading.Event(), threading.Event()
    model = RecordingLLM()

    class Busy(Flow[Brief]):
        @start()
        def work(self) -> Any:
            inside.set()
            release.wait(10)
            try:
                return one()(model).kickoff(inputs=dict(INPUTS))
            finally:
                over.set()

    async with _serving(Busy, model) as engine:
        run = asyncio.create_task(engine.run("flow", {}))
        await asyncio.to_thread(inside.wait, 10)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        release.set()
        await asyncio.to_thread(over.wait, 10)
        assert over.is_set()
    assert model.requests == []


async def test_what_an_awaiting_method_gives_up_is_cancelled() -> None:
    model = _Hanging()

    class Hasty(Flow[Brief]):
        @start()
        async def work(self) -> str:
            try:
                async with asyncio.timeout(0.05):
                    await three(model).akickoff(inputs=dict(INPUTS))
            except TimeoutError:
                return "too late"
            return "in time"

    async with _serving(Hasty, model) as engine:
        result = await engine.run("flow", {})
        assert result.raw == "too late"
        await _until(lambda: not model.open)


# What flows keep


async def test_a_flows_memory_and_states_last_as_long_as_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))

    class Remembering(Flow[Brief]):
        @start()
        def work(self) -> Any:
            assert self.memory is not None
            memory = self.memory._storage
            known = [record.content for record in memory.list_records()]
            memory.save([_record(self.state.topic)])
            return [known, [record.content for record in memory.list_records()]]

    async with _serving(Remembering) as engine:
        for topic in ("coffee", "water"):
            result = await engine.run("flow", {"topic": topic})
            assert json.loads(result.raw) == [[], [topic]]
    assert not list(tmp_path.glob("*memory*"))


def _record(text: str) -> Any:
    from crewai.memory.types import MemoryRecord

    return MemoryRecord(content=text, embedding=[0.1, 0.2])


async def test_outside_of_runs_flows_work_as_ever() -> None:
    model = RecordingLLM()
    flow = _two_crews(model)()
    result = await asyncio.to_thread(flow.kickoff, {"topic": "coffee"})
    assert len(result.split(" | ")) == 3
    assert len(model.requests) == 4
