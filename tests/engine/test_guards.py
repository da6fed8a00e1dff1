"""What keeps a plan from being used where it would not be right."""

import asyncio
import logging
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from crewai import Agent, Crew, Process, Task
from crewai import task as task_module
from crewai.core.providers.content_processor import _content_processor
from crewai.events.event_bus import crewai_event_bus
from crewai.events.types.crew_events import CrewKickoffStartedEvent
from crewai.events.types.llm_events import LLMCallStartedEvent
from crewai.hooks.dispatch import InterceptionPoint, register, unregister
from crewai.llm_overlay import llm_overlay
from crewai.llms.base_llm import BaseLLM
from crewai.memory.unified_memory import Memory
from crewai_files import TextFile
from pydantic import PrivateAttr

from app.engine import Engine
from app.engine.compat import coverage
from app.engine.compat.coverage import Unsupported, check_native_covers, check_plan_covers
from app.engine.compat.models import default_model
from tests.engine.crews import INPUTS, Report, agent, hasty, one, shout, task, three
from tests.engine.recording import RecordingLLM, Source, run_engine, run_reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


async def _run_once(build: Callable[[], Crew], model: BaseLLM) -> tuple[str, str, str]:
    """The execution mode of a crew, that of one run, and the reason for a difference."""
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", build)])
    result = await engine.run("crew", INPUTS)
    await engine.aclose()
    description = engine.describe("crew")
    return description.execution_mode, result.execution_mode, description.reason


# Fields


def _passes(output: Any) -> Any:
    return output


def _guards(output: Any) -> tuple[bool, Any]:
    return True, output.raw


_UNPLANNED: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("tools", {"tools": [shout]}, {}, {}),
    ("tools_results", {"tools_results": [{"result": "x", "result_as_answer": True}]}, {}, {}),
    ("inject_date", {"inject_date": True}, {}, {}),
    ("allow_delegation", {"allow_delegation": True}, {}, {}),
    ("max_execution_time", {"max_execution_time": 9}, {}, {}),
    ("max_iter", {"max_iter": 0}, {}, {}),
    ("reasoning", {"reasoning": True}, {}, {}),
    ("planning", {"planning": True}, {}, {}),
    ("multimodal", {"multimodal": True}, {}, {}),
    ("memory", {"memory": Memory(llm="none")}, {}, {}),
    ("apps", {"apps": ["gmail"]}, {}, {}),
    ("mcps", {"mcps": ["https://127.0.0.1/mcp"]}, {}, {}),
    ("embedder", {"embedder": {"provider": "ollama", "config": {"model_name": "m"}}}, {}, {}),
    ("knowledge_config", {"knowledge_config": {"results_limit": 3}}, {}, {}),
    ("tool_failure_policy", {"tool_failure_policy": "raise"}, {}, {}),
    ("callback", {}, {"callback": _passes}, {}),
    ("guardrail", {}, {"guardrail": _guards}, {}),
    ("guardrails", {}, {"guardrails": [_guards]}, {}),
    ("output_json", {}, {"output_json": Report}, {}),
    ("output_pydantic", {}, {"output_pydantic": Report}, {}),
    ("response_model", {}, {"response_model": Report}, {}),
    ("human_input", {}, {"human_input": True}, {}),
    ("tools", {}, {"tools": [shout]}, {}),
    ("allow_crewai_trigger_context", {}, {"allow_crewai_trigger_context": True}, {}),
    ("max_retries", {}, {"max_retries": 2}, {}),
    ("input_files", {}, {"input_files": {"a": TextFile(source=b"tea")}}, {}),
    ("task_callback", {}, {}, {"task_callback": _passes}),
    ("step_callback", {}, {}, {"step_callback": _passes}),
    ("before_kickoff_callbacks", {}, {}, {"before_kickoff_callbacks": [_passes]}),
    ("after_kickoff_callbacks", {}, {}, {"after_kickoff_callbacks": [_passes]}),
    ("planning", {}, {}, {"planning": True}),
    ("memory", {}, {}, {"memory": Memory(llm="none")}),
    ("output_log_file", {}, {}, {"output_log_file": "log.txt"}),
    ("trained_agents_file", {}, {}, {"trained_agents_file": "trained.pkl"}),
    ("cache", {}, {}, {"cache": True}),
    ("stream", {}, {}, {"stream": True}),
    ("process", {}, {}, {"process": Process.hierarchical, "manager_llm": RecordingLLM()}),
]


@pytest.mark.parametrize(
    ("field", "agent_options", "task_options", "crew_options"),
    _UNPLANNED,
    ids=[f"{'agent' if a else 'task' if t else 'crew'}.{field}" for field, a, t, c in _UNPLANNED],
)
def test_a_field_that_no_plan_covers_is_named(
    field: str, agent_options: Any, task_options: Any, crew_options: Any
) -> None:
    crew = one(agent_options, task_options, crew_options)(RecordingLLM())
    with pytest.raises(Unsupported, match=rf"\.({field}|tools|planning_config)$"):
        check_plan_covers(crew)


def test_what_only_stock_covers_is_named() -> None:
    crew = one()(RecordingLLM())
    vars(crew.agents[0])["a2a"] = object()  # its package is one that the service can't have
    for check in (check_plan_covers, check_native_covers):
        with pytest.raises(Unsupported, match=r"\.a2a$"):
            check(crew)


async def test_input_files_without_their_package_are_named_at_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "HAS_CREWAI_FILES", False)
    engine = Engine(model=(model := RecordingLLM()), mode="auto", max_stock_threads=1)
    build = one(task_options={"input_files": {"a": TextFile(source=b"tea")}})
    await engine.start([Source("crew", lambda: build(model))])
    await engine.aclose()
    assert "crew crew: CrewAI ignores input_files of task 1 without the package" in caplog.text


def test_a_field_of_a_coming_release_rules_out_both_faster_modes(monkeypatch: Any) -> None:
    # To the engine, a field that it does not know by name is a new one.
    for name in ("_PLAN_AGENT", "_NATIVE_AGENT"):
        monkeypatch.setattr(coverage, name, getattr(coverage, name) - {"backstory"})
    crew = one()(RecordingLLM())
    with pytest.raises(Unsupported, match=r"\.backstory"):
        check_plan_covers(crew)
    with pytest.raises(Unsupported, match=r"\.backstory"):
        check_native_covers(crew)


class _OwnTask(Task):
    @property
    def key(self) -> str:
        return "own"


class _OwnCrew(Crew):
    _logger: Any = PrivateAttr(default=None)


class _Kicks:
    def kickoff(self, *args: Any, **kwargs: Any) -> None: ...


class _MixedCrew(_Kicks, Crew):
    pass


class _RememberingAgent(Agent):
    memory: Any = True


def test_a_subclass_that_replaces_code_of_crewai_is_left_to_stock() -> None:
    model = RecordingLLM()
    a = agent(model)
    own_task = _OwnTask(description="d", expected_output="e", agent=a)
    for crew, replaced in (
        (Crew(agents=[a], tasks=[own_task]), "_OwnTask, a subclass of Task with its own key"),
        (_OwnCrew(agents=[a], tasks=[task(a)]), "with its own _logger"),
        (_MixedCrew(agents=[a], tasks=[task(a)]), "with its own kickoff"),
        (hasty(model), "with its own execute_task"),
    ):
        for check in (check_plan_covers, check_native_covers):
            with pytest.raises(Unsupported, match=replaced):
                check(crew)


def test_the_defaults_of_a_subclass_are_values_of_its_objects() -> None:
    a = _RememberingAgent(role="r", goal="g", backstory="b", llm=RecordingLLM())
    with pytest.raises(Unsupported, match=r"agent r\.memory"):
        check_plan_covers(Crew(agents=[a], tasks=[task(a)]))


def test_no_plan_covers_one_agent_in_two_asynchronous_tasks_at_once() -> None:
    a, b = agent(RecordingLLM(), 1), agent(RecordingLLM(), 2)
    tasks = [task(a, 1, async_execution=True), task(a, 2, async_execution=True), task(b, 3)]
    crew = Crew(agents=[a, b], tasks=tasks)
    check_native_covers(crew)
    with pytest.raises(Unsupported, match="two asynchronous tasks"):
        check_plan_covers(crew)


def test_no_plan_covers_more_tasks_than_requests_a_minute() -> None:
    a = agent(RecordingLLM(), max_rpm=1)
    tasks = [task(a, 1), task(a, 2)]
    with pytest.raises(Unsupported, match=r"crew\.max_rpm"):
        check_plan_covers(Crew(agents=[a], tasks=tasks, max_rpm=1))
    with pytest.raises(Unsupported, match=r"agent .*\.max_rpm"):
        check_plan_covers(Crew(agents=[a], tasks=tasks, max_rpm=2))


def test_a_context_from_outside_the_crew_is_not_planned() -> None:
    a = agent(RecordingLLM())
    crew = Crew(agents=[a], tasks=[task(a, 1, context=[task(a, 2)])])
    with pytest.raises(Unsupported, match="context"):
        check_plan_covers(crew)


class _NoAcall(BaseLLM):
    def call(self, messages: Any, *args: Any, **kwargs: Any) -> str:
        return "only in threads"


class _NoAcallAfterAll(_NoAcall):
    """As CrewAI's model of a provider whose package for asynchronous calls is not installed."""

    async def acall(self, *args: Any, **kwargs: Any) -> str:
        raise NotImplementedError("install a package")


async def test_no_plan_covers_a_model_without_acall() -> None:
    model = _NoAcall(model="m")
    mode, ran, reason = await _run_once(lambda: one()(model), model)
    assert (mode, ran) == ("native", "native")
    assert "a model without acall" in reason


async def test_a_model_whose_acall_is_not_implemented_is_called_in_a_thread() -> None:
    model = _NoAcallAfterAll(model="m")
    mode, ran, _ = await _run_once(lambda: one()(model), model)
    assert (mode, ran) == ("plan", "plan")
    mode, ran, _ = await _run_once(lambda: one()(model), model)
    assert (mode, ran) == ("native", "native")


async def test_the_idea_crew_is_planned_and_equal_to_stock() -> None:
    from app.crews.idea.crew import build
    from app.crews.idea.profile import DEFAULTS
    from app.crews.registry import idea_crew

    def built(model: BaseLLM) -> Crew:
        with default_model(model):
            return build()

    given = {**DEFAULTS, "experience_summary": "Ten years of {braces} and\nnew lines "}
    inputs = idea_crew().prompt_inputs(given, ["goal_type", "work_style"])
    assert inputs["work_style"] == "Solo (not given; assumed)"
    reference_model = RecordingLLM()
    crew = built(reference_model)
    for t in crew.tasks:
        t.output_file = None
    reference = await asyncio.to_thread(run_reference, lambda m: crew, reference_model, inputs)
    for mode in ("auto", "native"):
        ours = await run_engine(built, RecordingLLM(), inputs, mode, static=True)
        assert ours.calls == reference.calls
        assert ours.output == reference.output
        assert reference.output is not None
        assert ours.execution_mode == {"auto": "plan", "native": "native"}[mode]


# Surroundings


@contextmanager
def _listening(event: Any) -> Iterator[list[Any]]:
    events: list[Any] = []

    def listener(source: Any, event: Any) -> None:
        events.append(event)

    crewai_event_bus.on(event)(listener)
    try:
        yield events
    finally:
        crewai_event_bus.off(event, listener)


async def test_a_listener_at_start_rules_out_plans_and_receives_events_of_runs() -> None:
    model = RecordingLLM()
    with _listening(CrewKickoffStartedEvent) as events:
        mode, ran, reason = await _run_once(lambda: one()(model), model)
    assert (mode, ran) == ("native", "native")
    assert "event listener" in reason
    assert len(events) == 1


async def test_a_listener_that_comes_later_is_events_too(caplog: Any) -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: one()(model))])
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    with _listening(LLMCallStartedEvent), caplog.at_level(logging.INFO, logger="app.engine"):
        assert (await engine.run("crew", INPUTS)).execution_mode == "native"
    assert "an event listener" in caplog.text
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    await engine.aclose()


@pytest.mark.parametrize("point", list(InterceptionPoint))
async def test_a_hook_keeps_runs_from_plans(point: InterceptionPoint) -> None:
    seen: list[Any] = []
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: one()(model))])
    register(point, seen.append)
    try:
        assert (await engine.run("crew", INPUTS)).execution_mode == "native"
    finally:
        unregister(point, seen.append)
    assert bool(seen) == (point.value not in ("pre_tool_call", "post_tool_call"))
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    await engine.aclose()


async def test_a_hook_that_changes_messages_and_answers_does_so_as_in_stock() -> None:
    def before(context: Any) -> None:
        context.messages.append({"role": "user", "content": "And be brief."})

    def after(context: Any) -> str:
        return f"{context.response} (seen)"

    register(InterceptionPoint.PRE_MODEL_CALL, before)
    register(InterceptionPoint.POST_MODEL_CALL, after)
    try:
        reference = await asyncio.to_thread(run_reference, three, RecordingLLM(), INPUTS)
        ours = await run_engine(three, RecordingLLM(), INPUTS, "auto")
    finally:
        unregister(InterceptionPoint.PRE_MODEL_CALL, before)
        unregister(InterceptionPoint.POST_MODEL_CALL, after)
    assert ours.calls == reference.calls
    assert ours.output == reference.output
    assert "(seen)" in str(ours.output)
    assert ours.execution_mode == "native"


async def test_a_content_processor_is_honoured() -> None:
    class Polite:
        def process(self, content: str, context: Any = None) -> str:
            return content + " Please."

    model = RecordingLLM()
    token = _content_processor.set(Polite())
    try:
        mode, ran, reason = await _run_once(lambda: one()(model), model)
    finally:
        _content_processor.reset(token)
    assert (mode, ran) == ("native", "native")
    assert "content processor" in reason
    assert "tea in 2031. Please." in str(model.requests[0].messages)


async def test_a_model_overlay_keeps_runs_from_plans() -> None:
    model = RecordingLLM()
    with llm_overlay({"Nobody": "openai/gpt-4o"}):
        mode, _, reason = await _run_once(lambda: one()(model), model)
    assert mode == "native"
    assert "model overlay" in reason


async def test_trained_agents_keep_runs_from_plans(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: one()(model))])
    advice = {"Expert 1 for tea": {"suggestions": ["Mention the leaves"]}}
    trained = tmp_path / "trained_agents_data.pkl"
    await asyncio.to_thread(trained.write_bytes, pickle.dumps(advice))
    assert (await engine.run("crew", INPUTS)).execution_mode == "native"
    assert "Mention the leaves" in str(model.requests[0].messages)
    await asyncio.to_thread(trained.unlink)
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    await engine.aclose()


# Factories


async def test_a_factory_that_changes_later_is_followed_run_by_run(caplog: Any) -> None:
    model = RecordingLLM()
    day = ["Monday"]

    def build() -> Crew:
        return one({"backstory": f"It is {day[0]}."})(model)

    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", build)])
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    day[0] = "Tuesday"
    with caplog.at_level(logging.INFO, logger="app.engine"):
        assert (await engine.run("crew", INPUTS)).execution_mode == "native"
    assert "differs from the recorded one" in caplog.text
    assert "Tuesday" in str(model.requests[-1].messages)
    day[0] = "Monday"
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    assert "Monday" in str(model.requests[-1].messages)
    await engine.aclose()


@pytest.mark.parametrize(
    "change",
    [
        {"markdown": True},
        {"expected_output": "Else"},
        {"context": None},
        {"tools": [shout]},
        {"async_execution": True},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_a_factory_that_changes_anything_else_is_followed_too(change: Any) -> None:
    model = RecordingLLM()
    options: dict[str, Any] = {}

    def build() -> Crew:
        a, b = agent(model, 1), agent(model, 2)
        return Crew(agents=[a, b], tasks=[task(a, 1), task(b, 2, **options), task(a, 3)])

    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", build)])
    options.update(change)
    assert (await engine.run("crew", INPUTS)).execution_mode == "native"
    await engine.aclose()


@pytest.mark.parametrize("mode", ["auto", "native", "stock"])
async def test_a_factory_may_add_a_task_after_the_start(mode: Any) -> None:
    model = RecordingLLM()
    names = ["first"]

    def build() -> Crew:
        a = agent(model)
        return Crew(agents=[a], tasks=[task(a, n, name=name) for n, name in enumerate(names)])

    engine = Engine(model=model, mode=mode, max_stock_threads=2)
    await engine.start([Source("crew", build)])
    names.append("second")
    result = await engine.run("crew", INPUTS)
    assert [outcome.name for outcome in result.tasks] == ["first", "second"]
    assert not any(outcome.skipped for outcome in result.tasks)
    await engine.aclose()


async def test_a_factory_that_never_builds_the_same_is_not_planned() -> None:
    model = RecordingLLM()
    count = iter(range(100))

    def build() -> Crew:
        return one({"backstory": f"Number {next(count)}"})(model)

    mode, ran, reason = await _run_once(build, model)
    assert (mode, ran) == ("native", "native")
    assert "another crew each time" in reason


async def test_a_factorys_own_model_is_used_by_each_run() -> None:
    models: list[RecordingLLM] = []

    def build() -> Crew:
        models.append(RecordingLLM())
        return one()(models[-1])

    engine = Engine(model=RecordingLLM(), mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", build)])
    result = await engine.run("crew", INPUTS)
    assert result.execution_mode == "plan"
    assert [len(model.requests) for model in models[:-1]] == [0] * (len(models) - 1)
    assert len(models[-1].requests) == 1
    await engine.aclose()


# What a plan sends


async def test_a_plans_calls_contain_their_task_and_agent() -> None:
    seen: list[Any] = []

    class Curious(RecordingLLM):
        async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> str:
            seen.append((kwargs["from_task"], kwargs["from_agent"]))
            self._emit_call_started_event(messages, **{k: kwargs[k] for k in _WHOSE})
            return "fine"

    model = Curious()
    engine = Engine(model=model, mode="auto", max_stock_threads=2)
    await engine.start([Source("crew", lambda: one()(model))])
    assert (await engine.run("crew", INPUTS)).execution_mode == "plan"
    [(of_task, of_agent)] = seen
    assert of_task.description == "Task 1: write about tea in 2031."
    assert of_task.agent is of_agent
    assert (of_agent.role, of_agent.goal) == ("Expert 1 for tea", "Know all about tea in 2031\n")
    await engine.aclose()


_WHOSE = ("from_task", "from_agent")


def test_an_agent_of_ones_own_executor_is_left_to_stock() -> None:
    from crewai.agents.agent_executor import AgentExecutor

    class Own(AgentExecutor):
        pass

    a = Agent(role="r", goal="g", backstory="b", llm=RecordingLLM(), executor_class=Own)
    crew = Crew(agents=[a], tasks=[task(a, description="d", expected_output="e")])
    for check in (check_plan_covers, check_native_covers):
        with pytest.raises(Unsupported, match="executor_class"):
            check(crew)
