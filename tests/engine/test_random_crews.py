"""Random crews, inputs and answers: ours must equal stock."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from crewai import Crew
from crewai.agent.planning_config import PlanningConfig
from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource
from crewai.llms.base_llm import BaseLLM
from crewai.memory.unified_memory import Memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.engine.compat.coverage import Unsupported, _check_agents_are_alone, check_native_covers
from tests.engine.crews import TEMPLATES, agent, shout, task
from tests.engine.memories import (
    EMBEDDED,
    EMBEDDER,
    analysis,
    comparable,
    digest_of,
    own_storages,
    without_recalled,
)
from tests.engine.recording import Ran, RecordingLLM, Request, SyncLLM, run_engine, run_reference

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(600),
]

_VARIABLES = ("topic", "year", "a", "goal", "role", "input", "tools", "x-y")
# Pieces that CrewAI, Python's formats, regular expressions or its parser could trip over.
_PIECES = st.sampled_from(
    [
        *(f"{{{name}}}" for name in (*_VARIABLES, "tool_names", "backstory", "unknown")),
        "{", "}", "{{", "}}", "{}", "{0}", " ", "\n", "\t", "%s", "\\1", "$&", "`" * 3, "\u27e6",
        "\u27e7", "text", "Final Answer:", "Thought:", "Action: x", "Action Input: {}",
        "Observation:", "\u00e9\u4e2d\U0001f600", '"quoted"', "{{ .Response }}",
    ]
)  # fmt: skip
_VALUES = st.lists(_PIECES, max_size=5).map("".join)
_PLAIN_VALUES = st.one_of(
    st.text(alphabet="abc {}\n.", max_size=12),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(alphabet="ab", max_size=2), st.integers(), max_size=2),
)
_NAMED = st.lists(
    st.sampled_from(["{topic}", "{year}", "{a}", " about ", "\n", '{"k": 1}', "{ topic }", "!"]),
    min_size=1,
    max_size=4,
).map("".join)


@dataclass(frozen=True)
class _Shape:
    """All that a random crew is made of; building it twice gives equal crews."""

    agents: tuple[Mapping[str, Any], ...]
    tasks: tuple[tuple[int, tuple[int, ...] | str | None, Mapping[str, Any]], ...]
    crew: Mapping[str, Any] = field(default_factory=dict)

    def build(self, model: BaseLLM) -> Crew:
        agents = [
            agent(model, number, **_made(options, model))
            for number, options in enumerate(self.agents)
        ]
        tasks: list[Any] = []
        for number, (who, context, options) in enumerate(self.tasks):
            chosen = dict(options)
            if not isinstance(context, str):
                chosen["context"] = None if context is None else [tasks[i] for i in context]
            tasks.append(task(agents[who], number, **chosen))
        return Crew(agents=agents, tasks=tasks, **_made(self.crew, model))


def _made(options: Mapping[str, Any], model: BaseLLM) -> dict[str, Any]:
    """The options, with a new memory and new knowledge for each crew."""
    made = dict(options)
    if "memory" in made:
        made["memory"] = Memory(llm=model, embedder=EMBEDDER, root_scope="/x")
    if "knowledge_sources" in made:
        made["knowledge_sources"] = [StringKnowledgeSource(content=made["knowledge_sources"])]
        made.update(EMBEDDED)
    return made


_KNOWLEDGE: Mapping[str, st.SearchStrategy[Any]] = {
    "knowledge_sources": st.sampled_from(["Tea is old.", "Water boils."]),
}
# Not of agents, which share their memories in a run, unlike stock's.
_MEMORY: Mapping[str, st.SearchStrategy[Any]] = {"memory": st.just(True)}
_NATIVE_OPTIONS: Mapping[str, st.SearchStrategy[Any]] = {
    "tools": st.just([shout]),
    "planning": st.booleans(),
    "planning_config": st.builds(PlanningConfig, max_attempts=st.integers(1, 2)),
    "skills": st.just(["---\nname: brewing\ndescription: How to brew\n---\nBoil {topic}."]),
}


@st.composite
def _shapes(draw: st.DrawFn, tools: bool, remembers: bool = False) -> _Shape:

    def some(options: Mapping[str, st.SearchStrategy[Any]]) -> Mapping[str, Any]:
        return draw(st.fixed_dictionaries({}, optional=dict(options)))

    agents = tuple(
        some(
            {
                "goal": _NAMED,
                "backstory": _NAMED,
                "use_system_prompt": st.booleans(),
                "system_template": st.just(TEMPLATES["system_template"]),
                "prompt_template": st.just(TEMPLATES["prompt_template"]),
                "response_template": st.just(TEMPLATES["response_template"]),
                "max_retry_limit": st.integers(0, 2),
                "max_iter": st.integers(1, 3),
                "max_rpm": st.just(99),
                "cache": st.booleans(),
                "allow_code_execution": st.booleans(),
                "multimodal": st.booleans(),
                **(_NATIVE_OPTIONS if tools else {}),
                **(_KNOWLEDGE if remembers else {}),
            }
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    tasks = []
    for number in range(draw(st.integers(1, 4))):
        earlier = st.lists(st.integers(0, number - 1), max_size=3) if number else st.just([])
        context = draw(st.one_of(st.just("default"), st.none(), earlier.map(tuple)))
        options = some(
            {
                "description": _NAMED,
                "expected_output": _NAMED,
                # What one recalls of another at the same time depends on chance.
                "async_execution": st.just(False) if remembers else st.booleans(),
                "markdown": st.booleans(),
                "name": st.sampled_from(["one", "{topic}"]),
                "output_file": st.just("out.md"),
            }
        )
        tasks.append((draw(st.integers(0, len(agents) - 1)), context, options))
    remembered = {**_KNOWLEDGE, **_MEMORY} if remembers else {}
    crew = some({"max_rpm": st.just(99), **remembered})
    return _Shape(agents, tuple(tasks), crew)


_INPUTS = st.fixed_dictionaries(
    {"topic": st.one_of(_VALUES, _PLAIN_VALUES), "year": st.one_of(_VALUES, _PLAIN_VALUES)},
    optional={name: st.one_of(_VALUES, _PLAIN_VALUES) for name in _VARIABLES[2:]},
)
# Most answers are ordinary, or most runs would end at their first task.
_ANSWERS = st.lists(
    st.one_of(
        st.just("plain DIGEST"),
        st.just("Thought: so\nFinal Answer: DIGEST"),
        _VALUES.map(lambda text: f"DIGEST {text}"),
        _VALUES,
        st.just('Action: shout\nAction Input: {"text": "DIGEST"}'),
        st.just(RuntimeError("down")),
    ),
    min_size=1,
    max_size=4,
)


class _Script:
    """Answers by what was request, never by when: runs side by side must not matter."""

    def __init__(self, answers: list[Any]) -> None:
        self._answers = answers

    def __call__(self, request: Request, nth: int) -> Any:
        if not request.task:
            return analysis(request, nth)
        digest = digest_of(without_recalled(request))
        answer = self._answers[(int(digest, 16) + nth) % len(self._answers)]
        return answer.replace("DIGEST", digest) if isinstance(answer, str) else answer


def _compared(ran: Ran, shape: _Shape) -> Mapping[tuple[str, str], list[Any]]:
    """The calls of a run. Of memories that are equally near, chance decides which is first."""
    if "memory" not in shape.crew:
        return ran.calls
    calls = {key: list(map(without_recalled, made)) for key, made in ran.calls.items()}
    for task_output in (ran.output or {}).get("tasks_output", ()):
        sent = [without_recalled(Request("", "", task_output["messages"], [], None, None))]
        task_output["messages"] = sent[0].messages
    return comparable(calls)


def _compare(
    shape: _Shape,
    inputs: Mapping[str, Any],
    answers: list[Any],
    mode: Any,
    kind: type[SyncLLM] = RecordingLLM,
) -> None:
    try:
        crew = shape.build(RecordingLLM())
        check_native_covers(crew)
        _check_agents_are_alone(crew)
    except (ValidationError, ValueError, Unsupported):
        return  # no valid crew, or one that stock itself does not repeat its own result
    script = _Script(answers)
    shout.reset_usage_count()
    with own_storages():
        reference = run_reference(shape.build, kind(script), inputs)
    ours = asyncio.run(run_engine(shape.build, kind(script), inputs, mode))
    if reference.error is None:
        assert ours.error is None
        assert _compared(ours, shape) == _compared(reference, shape)
        assert ours.output == reference.output
        return
    # When a task fails, stock continues the concurrent tasks; ours end. Timing decides which of
    # two failures is reported.
    assert ours.error is not None
    if not any(options.get("async_execution") for _, _, options in shape.tasks):
        assert ours.error == reference.error
        assert _compared(ours, shape) == _compared(reference, shape)


_SETTINGS = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@_SETTINGS
@given(shape=_shapes(tools=False), inputs=_INPUTS, answers=_ANSWERS)
def test_random_crews_of_plain_agents(shape: _Shape, inputs: Any, answers: Any) -> None:
    _compare(shape, inputs, answers, "auto")


@_SETTINGS
@given(
    shape=_shapes(tools=True),
    inputs=_INPUTS,
    answers=_ANSWERS,
    kind=st.sampled_from([RecordingLLM, SyncLLM]),
)
def test_random_crews_with_native_features(
    shape: _Shape, inputs: Any, answers: Any, kind: type[SyncLLM]
) -> None:
    _compare(shape, inputs, answers, "native", kind)


@settings(_SETTINGS, max_examples=15, derandomize=True)
@given(shape=_shapes(tools=True, remembers=True), inputs=_INPUTS, answers=_ANSWERS)
def test_random_crews_with_memory_and_knowledge(shape: _Shape, inputs: Any, answers: Any) -> None:
    _compare(shape, inputs, answers, "native")
