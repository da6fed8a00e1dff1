"""What the engine promises to the service that holds it."""

import asyncio
import logging
import os
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Task
from crewai.llms.base_llm import BaseLLM
from crewai.types.usage_metrics import UsageMetrics

from app.engine import (
    CrewBroken,
    CrewFailed,
    CrewUnknown,
    Engine,
    EngineClosed,
    EngineError,
    ModelError,
    NoResult,
    TaskFinished,
    TaskStarted,
    Usage,
)
from tests.commands import run_python
from tests.engine.crews import (
    INPUTS,
    agent,
    conditional,
    hasty,
    one,
    react,
    shout,
    task,
    three,
    two,
)
from tests.engine.recording import RecordingLLM, Request, Source, run_engine, run_reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODES = ("auto", "native", "stock")


class _Notes:
    """An observer that keeps its events."""

    def __init__(self) -> None:
        self.events: list[TaskStarted | TaskFinished] = []
        self.loops: set[int] = set()

    async def task_started(self, event: TaskStarted) -> None:
        self.loops.add(id(asyncio.get_running_loop()))
        self.events.append(event)

    async def task_finished(self, event: TaskFinished) -> None:
        await asyncio.sleep(0)
        self.loops.add(id(asyncio.get_running_loop()))
        self.events.append(event)


async def _started(model: BaseLLM, build: Any, mode: Any = "auto", **options: Any) -> Engine:
    engine = Engine(model=model, mode=mode, max_stock_threads=4)
    await engine.start([Source("crew", build, **options)])
    return engine


@pytest.mark.parametrize("mode", MODES)
async def test_an_observer_receives_each_task_on_the_engines_loop(mode: Any) -> None:
    model, notes = RecordingLLM(), _Notes()
    engine = await _started(model, lambda: three(model), mode)
    before = datetime.now(UTC)
    result = await engine.run("crew", INPUTS, notes)
    after = datetime.now(UTC)
    assert notes.loops == {id(asyncio.get_running_loop())}
    starts = [event for event in notes.events if isinstance(event, TaskStarted)]
    ends = [event for event in notes.events if isinstance(event, TaskFinished)]
    assert sorted(event.index for event in starts) == [0, 1, 2]
    assert sorted(event.index for event in ends) == [0, 1, 2]
    assert notes.events.index(starts[-1]) > max(notes.events.index(end) for end in ends[:2])
    for end in ends:
        outcome = result.tasks[end.index]
        assert (outcome.name, outcome.agent, outcome.text) == (end.name, end.agent, end.text)
        assert before - timedelta(seconds=1) <= end.started_at <= end.finished_at <= after
        assert end.started_at.tzinfo is UTC
        assert end.agent == f"Expert {end.index + 1} for tea"
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_an_error_of_the_observer_fails_the_run_with_that_error(mode: Any) -> None:
    model = RecordingLLM()

    class Full(Exception):
        pass

    class Observer(_Notes):
        async def task_finished(self, event: TaskFinished) -> None:
            raise Full("no space left")

    engine = await _started(model, lambda: two()(model), mode)
    with pytest.raises(Full, match="no space left"):
        await engine.run("crew", INPUTS, Observer())
    assert len(model.requests) == 1, "the second task is not begun"
    await engine.aclose()


async def test_a_run_that_falls_back_reports_each_task_once() -> None:
    model = RecordingLLM(lambda a, n: "" if n == 0 and "Task 3" in a.task else f"answer {a.digest}")
    notes = _Notes()
    engine = await _started(model, lambda: three(model))
    result = await engine.run("crew", INPUTS, notes)
    assert result.execution_mode == "native"
    assert len(notes.events) == 6
    assert len({(type(event), event.index) for event in notes.events}) == 6
    assert len(model.requests) == 4, "only the empty answer is request for again"
    await engine.aclose()


async def test_a_run_that_falls_back_waits_for_its_observer() -> None:
    """The observer is still receiving task 1's end when task 2 needs another execution mode."""
    model = RecordingLLM(lambda a, n: "" if n == 0 and "Task 2" in a.task else f"answer {a.digest}")
    first_received = asyncio.Event()

    class Slow(_Notes):
        async def task_finished(self, event: TaskFinished) -> None:
            if event.index == 0:
                await first_received.wait()
                raise OSError("the disk is full")

    engine = await _started(model, lambda: three(model))
    run = asyncio.create_task(engine.run("crew", INPUTS, Slow()))
    async with asyncio.timeout(60):
        while len(model.requests) < 3:  # noqa: ASYNC110 - task 2 calls again, natively
            await asyncio.sleep(0.001)
    first_received.set()
    with pytest.raises(OSError, match="the disk is full"):
        await run
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_usage_counts_what_this_run_used_and_nothing_else(mode: Any) -> None:
    model = RecordingLLM()
    engine = await _started(model, lambda: three(model), mode)
    for _ in range(2):
        result = await engine.run("crew", INPUTS)
        assert (result.usage.successful_requests, result.usage.prompt_tokens) == (3, 30)
        assert (result.usage.completion_tokens, result.usage.total_tokens) == (6, 36)
        assert result.output.token_usage == UsageMetrics(**asdict(result.usage))
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_usage_is_known_of_a_run_that_does_not_succeed(mode: Any) -> None:
    class Failing(_Notes):
        async def task_finished(self, event: TaskFinished) -> None:
            raise OSError("the disk is full")

    model, usage = RecordingLLM(), Usage()
    engine = await _started(model, lambda: two()(model), mode)
    with pytest.raises(OSError, match="the disk is full"):
        await engine.run("crew", INPUTS, Failing(), usage=usage)
    assert (usage.successful_requests, usage.total_tokens) == (1, 12)
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("calls_its_base", [False, True])
async def test_usage_of_a_model_with_its_own_counter_is_counted_once(
    mode: Any, calls_its_base: bool
) -> None:
    class OwnCount(RecordingLLM):
        def _track_token_usage_internal(self, usage_data: dict[str, Any]) -> None:
            if calls_its_base:
                super()._track_token_usage_internal(usage_data)
            else:
                self._token_usage["total_tokens"] += 12
                self._token_usage["successful_requests"] += 1

    model = OwnCount()
    engine = await _started(model, lambda: three(model), mode)
    usage = (await engine.run("crew", INPUTS)).usage
    assert (usage.total_tokens, usage.successful_requests) == (36, 3)
    await engine.aclose()


@pytest.mark.parametrize("mode", ["auto", "stock"])
async def test_a_skipped_task_has_no_text_and_no_times(mode: Any) -> None:
    model, notes = RecordingLLM(), _Notes()
    engine = await _started(model, lambda: conditional(False)(model), mode)
    result = await engine.run("crew", INPUTS, notes)
    skipped = result.tasks[1]
    assert skipped.skipped
    assert (skipped.text, skipped.started_at, skipped.finished_at) == ("", None, None)
    assert {event.index for event in notes.events} == {0, 2}
    assert not result.tasks[0].skipped
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_model_that_fails_is_a_model_error(mode: Any) -> None:
    model = RecordingLLM(lambda a, n: RuntimeError("quota is used up at /srv/keys/secret.txt"))
    engine = await _started(model, lambda: two()(model), mode)
    with pytest.raises(ModelError, match="quota is used up") as caught:
        await engine.run("crew", INPUTS)
    assert "/srv" not in str(caught.value)
    assert "\n" not in str(caught.value)
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_empty_answers_are_no_result(mode: Any) -> None:
    for answer in ("", "Final Answer:"):
        model = RecordingLLM(lambda a, n, text=answer: text)
        engine = await _started(model, lambda m=model: two()(m), mode)
        with pytest.raises(NoResult):
            await engine.run("crew", INPUTS)
        await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_an_exception_inside_the_crew_is_named_without_internals(mode: Any) -> None:
    def callback(output: Any) -> None:
        raise OSError(f"can't open {Path(__file__)}")

    model = RecordingLLM()
    engine = await _started(model, lambda: one(task_options={"callback": callback})(model), mode)
    with pytest.raises(CrewFailed, match=r"^OSError: can't open \.\.\.$"):
        await engine.run("crew", INPUTS)
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_too_long_prompt_that_must_not_be_shortened_fails_the_run(mode: Any) -> None:
    # CrewAI raises SystemExit here, and never ends if the task is asynchronous.
    model = RecordingLLM(lambda a, n: RuntimeError("maximum context length exceeded"))

    def build() -> Crew:
        agents = [agent(model, n, respect_context_window=False) for n in (1, 2)]
        tasks = [task(agents[0], 1, async_execution=True), task(agents[1], 2)]
        return Crew(agents=agents, tasks=tasks)

    engine = await _started(model, build, mode)
    with pytest.raises(ModelError, match="context window"):
        await asyncio.wait_for(engine.run("crew", INPUTS), 20)
    assert len(model.requests) == 1
    await engine.aclose()


@pytest.mark.parametrize("tools", [[], [shout]])
async def test_a_too_long_prompt_that_may_be_shortened_is_sent_again(tools: Any) -> None:
    """Stock shortens it, too, but then ends the task unanswered, or repeats its last tool."""
    too_long_at = len(tools)

    def answer(request: Request, nth: int) -> Any:
        if request.task and nth == too_long_at:
            return RuntimeError("This model's maximum context length is 8 tokens")
        return react("shout", too_long_at)(request, nth) if request.task else "in short"

    build = one({"tools": tools})
    reference_model = RecordingLLM(answer)
    reference = await asyncio.to_thread(run_reference, build, reference_model, INPUTS)
    assert reference.output is not None
    if tools:
        assert "I tried reusing the same input" in str(reference_model.requests)
    else:
        assert "produced no final output" in reference.output["raw"]

    model = RecordingLLM(answer)
    ours = await run_engine(build, model, INPUTS, "auto")
    assert ours.output is not None
    assert ours.output["raw"].startswith("done ")
    assert "in short" in model.requests[-1].last
    assert len(model.requests) == too_long_at + 3
    assert "I tried reusing the same input" not in str(model.requests)


@pytest.mark.parametrize("mode", MODES)
async def test_an_agent_without_a_model_gets_the_engines_and_others_keep_theirs(mode: Any) -> None:
    engines, own = RecordingLLM(), RecordingLLM()
    assert "OPENAI_API_KEY" not in os.environ

    def build() -> Crew:
        first = Agent(role="First", goal="g", backstory="b")
        second = Agent(role="Second", goal="g", backstory="b", llm=own)
        tasks = [Task(description="d", expected_output="e", agent=a) for a in (first, second)]
        return Crew(agents=[first, second], tasks=tasks)

    engine = await _started(engines, build, mode, static=True)
    await engine.run("crew", {})
    assert [request.role for request in engines.requests] == ["First"]
    assert [request.role for request in own.requests] == ["Second"]
    await engine.aclose()


def test_outputs_are_named_and_never_written(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = RecordingLLM()

    def build() -> Crew:
        a = agent(model)
        named = [
            {"output_file": "reports/{topic}_plan.v2.md"},
            {"output_file": "plan.md", "name": "ignored"},
            {"name": "A name, with: signs!"},
            {},
            {"output_file": "other/plan.txt"},
            {"output_file": "{topic}.md"},
        ]
        return Crew(agents=[a], tasks=[task(a, n, **o) for n, o in enumerate(named)])

    async def run(mode: Any) -> None:
        engine = await _started(model, build, mode)
        description = engine.describe("crew")
        names = [described.name for described in description.tasks]
        assert names == ["plan_v2", "plan", "A_name_with_signs", "task_4", "plan_2", "task_6"]
        result = await engine.run("crew", {"topic": "../../escaped", "year": 1})
        assert [outcome.name for outcome in result.tasks] == names
        await engine.aclose()

    for mode in MODES:
        asyncio.run(run(mode))
    assert list(tmp_path.iterdir()) == []
    assert not list(tmp_path.parent.glob("escaped*"))


@pytest.mark.parametrize("named", [True, "inputs_and_outputs", "log.json"])
@pytest.mark.parametrize("mode", MODES)
def test_no_log_is_written_where_a_crew_says(
    mode: Any, named: bool | str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    model = RecordingLLM()

    async def run() -> None:
        build = one(crew_options={"output_log_file": named})
        engine = await _started(model, lambda: build(model), mode)
        assert engine.describe("crew").execution_mode == ("plan" if mode == "auto" else mode)
        assert (await engine.run("crew", INPUTS)).raw.startswith("answer ")
        await engine.aclose()

    asyncio.run(run())
    assert list(tmp_path.iterdir()) == []


async def test_a_description_lists_the_placeholders_that_crewai_replaces() -> None:
    model = RecordingLLM()

    def build() -> Crew:
        a = agent(model, goal='Answer {"json": {goal_type}} {not one} {1}', backstory="{back-up}")
        idle = agent(model, 2, role="{idle_role}")
        return Crew(agents=[a, idle], tasks=[task(a, output_file="{folder}.md")])

    engine = await _started(model, build)
    expected = ("back-up", "folder", "goal_type", "idle_role", "topic", "year")
    assert engine.describe("crew").inputs == expected
    await engine.aclose()


async def test_a_crew_that_cannot_be_built_is_reported_in_one_line() -> None:
    def broken() -> Crew:
        return Crew(agents=[], tasks=[Task(description="d", expected_output="e")])

    engine = Engine(model=RecordingLLM(), mode="auto", max_stock_threads=1)
    with pytest.raises(CrewBroken, match=r"^crew bad can't be built: ") as caught:
        await engine.start([Source("bad", broken)])
    assert "\n" not in str(caught.value)
    await engine.aclose()


@pytest.mark.parametrize("mode", MODES)
async def test_a_crew_that_is_built_once_is_copied_for_each_run(mode: Any) -> None:
    model = RecordingLLM()
    crew, shared = two()(model), agent(model)
    built_once = {
        "crew": (lambda: crew, two()),
        "agent": (lambda: Crew(agents=[shared], tasks=[task(shared)]), one()),
    }
    engine = Engine(model=model, mode=mode, max_stock_threads=20)
    await engine.start([Source(name, build) for name, (build, _) in built_once.items()])
    for name, (_, build) in built_once.items():
        anew = await _started(model, lambda build=build: build(model), mode)
        inputs = [{**INPUTS, "topic": f"topic {number}"} for number in range(20)]
        results = await asyncio.gather(*(engine.run(name, given) for given in inputs))
        for given, result in zip(inputs, results, strict=True):
            assert result.raw == (await anew.run("crew", given)).raw
        await anew.aclose()
    # The objects that the project's code holds are as they were.
    assert crew.agents[0].agent_executor is None
    assert "{topic}" in crew.tasks[1].description
    assert "{topic}" in shared.role
    await engine.aclose()


@pytest.mark.parametrize(
    ("options", "holder"),
    [(({}, {}, {"memory": True}), "the crew"), (({"memory": True}, {}, {}), "agent Expert 1")],
)
async def test_a_crew_that_is_built_once_with_a_memory_is_refused(
    options: tuple[dict[str, Any], ...], holder: str
) -> None:
    model = RecordingLLM()
    crew = one(*options)(model)
    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    with pytest.raises(CrewBroken, match=f"the memory of {holder}.*is made where its code is"):
        await engine.start([Source("one", lambda: crew)])
    await engine.aclose()


async def test_a_crew_whose_copies_share_objects_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = RecordingLLM()
    crew = one()(model)
    monkeypatch.setattr("app.engine.engine.copy_crew", lambda crew: crew)
    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    with pytest.raises(CrewBroken, match="same objects"):
        await engine.start([Source("one", lambda: crew)])
    await engine.aclose()


async def test_two_crews_of_one_name_are_refused() -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    with pytest.raises(CrewBroken, match="two crews"):
        await engine.start([Source("crew", lambda: one()(model))] * 2)
    await engine.aclose()


async def test_an_unknown_crew_and_a_closed_engine_are_different_errors() -> None:
    model = RecordingLLM()
    engine = await _started(model, lambda: one()(model))
    with pytest.raises(CrewUnknown, match="unknown"):
        engine.describe("unknown")
    with pytest.raises(CrewUnknown, match="unknown"):
        await engine.run("unknown", {})
    await engine.aclose()
    with pytest.raises(EngineClosed):
        await engine.run("crew", INPUTS)
    assert issubclass(EngineClosed, EngineError)


async def test_the_start_logs_one_line_per_crew_with_its_execution_mode_and_why(
    caplog: Any,
) -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    with caplog.at_level(logging.INFO, logger="app.engine"):
        await engine.start(
            [
                Source("plain", lambda: one()(model)),
                Source("tooled", lambda: one({"tools": [shout]})(model)),
                Source("hasty", lambda: hasty(model)),
            ]
        )
    lines = [record.message for record in caplog.records if record.name.startswith("app.engine")]
    assert len(lines) == 3
    assert lines[0] == "crew plain: execution mode plan"
    assert lines[1].startswith("crew tooled: execution mode native (no plan covers agent ")
    assert ".tools" in lines[1]
    assert "execution mode stock" in lines[2]
    assert lines[2].count("HastyAgent, a subclass of Agent with its own execute_task") == 2
    await engine.aclose()


def test_importing_the_engine_writes_nothing_to_the_home_or_the_working_directory(
    tmp_path: Path,
) -> None:
    home, work, storage = (tmp_path / name for name in ("home", "work", "storage"))
    home.mkdir()
    work.mkdir()
    code = (
        "import asyncio\n"
        "from app.engine import Engine\n"
        "from crewai import Agent, Crew, Task\n"
        "from crewai.llms.base_llm import BaseLLM\n"
        "class Model(BaseLLM):\n"
        "    def call(self, messages, **options): return 'fine'\n"
        "    async def acall(self, messages, **options): return 'fine'\n"
        "class Source:\n"
        "    name, static, project, parameters, required = 'crew', False, None, {}, ()\n"
        "    def build(self):\n"
        "        a = Agent(role='r', goal='g', backstory='b')\n"
        "        t = Task(description='d', expected_output='e', agent=a, output_file='o.md')\n"
        "        return Crew(agents=[a], tasks=[t])\n"
        "async def main():\n"
        "    for mode in ('auto', 'native', 'stock'):\n"
        "        e = Engine(model=Model(model='m'), mode=mode, max_stock_threads=1)\n"
        "        await e.start([Source()])\n"
        "        assert (await e.run('crew', {})).raw == 'fine'\n"
        "        await e.aclose()\n"
        "asyncio.run(main())\n"
    )
    printed = run_python(
        code,
        work,
        HOME=str(home),
        PYTHONDONTWRITEBYTECODE="1",
        CREWAI_STORAGE_DIR=str(storage),
    )
    assert printed == "", "nothing is printed"
    assert list(work.iterdir()) == []
    assert list(home.rglob("*")) == []
