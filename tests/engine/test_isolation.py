"""Runs that go side by side never see each other's values."""

import asyncio
import functools
import re
from pathlib import Path
from typing import Any

import pytest
from crewai import Crew
from crewai.memory.unified_memory import Memory
from crewai.tools import tool

from app.engine import CrewResult, Engine
from tests.engine.crews import FUNCTIONS, function_calls, one, react, shout, three
from tests.engine.recording import RecordingLLM, Source

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_RUNS = 500
_VALUE = re.compile(r"value-(\d+)-end")


class _Echo(RecordingLLM):
    """Answers with every value that it was sent, some calls later than others."""

    async def acall(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(hash(str(messages)) % 7 / 1000)
        return self._echo(messages)

    def call(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        return self._echo(messages)

    def _echo(self, messages: Any) -> str:
        self._track_token_usage_internal(
            {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        )
        return "I saw " + " ".join(f"value-{v}-end" for v in _VALUE.findall(str(messages)))


def _tooled(model: Any) -> Any:
    crew = three(model)
    for t in crew.tasks:
        t.tools = [shout]
    return crew


@pytest.mark.parametrize(
    ("mode", "build", "runs", "execution_mode"),
    [
        ("auto", three, _RUNS, "plan"),
        ("native", three, _RUNS, "native"),
        ("auto", _tooled, 100, "native"),
        ("stock", three, 40, "stock"),
    ],
)
async def test_interleaved_runs_hold_only_their_own_inputs(
    mode: Any, build: Any, runs: int, execution_mode: str
) -> None:
    model = _Echo()
    engine = Engine(model=model, mode=mode, max_stock_threads=16)
    await engine.start([Source("crew", lambda: build(model))])

    async def run(number: int) -> CrewResult:
        return await engine.run("crew", {"topic": f"value-{number}-end", "year": number})

    results = await asyncio.gather(*(run(number) for number in range(runs)))
    await engine.aclose()
    for number, result in enumerate(results):
        assert result.execution_mode == execution_mode
        assert len(result.tasks) == 3
        for outcome in result.tasks:
            assert set(_VALUE.findall(outcome.text)) == {str(number)}
            assert str(number) in outcome.agent
        assert result.usage.successful_requests == 3
        assert result.usage.total_tokens == 12
        assert result.output.token_usage.total_tokens == 12


async def test_runs_that_are_handed_over_hold_only_their_own_inputs() -> None:
    model = _Echo()
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", lambda: three(model))])

    async def run(number: int) -> CrewResult:
        # Every third input names another placeholder: CrewAI replaces it, a plan does not.
        extra = "{year}" if number % 3 == 0 else ""
        topic = f"value-{number}-end{extra}"
        return await engine.run("crew", {"topic": topic, "year": number})

    results = await asyncio.gather(*(run(number) for number in range(60)))
    await engine.aclose()
    assert {result.execution_mode for result in results} == {"plan", "native"}
    for number, result in enumerate(results):
        for outcome in result.tasks:
            assert set(_VALUE.findall(outcome.text)) == {str(number)}


async def test_a_static_crews_runs_share_its_models_and_nothing_else() -> None:
    model = _Echo()
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    builds = 0

    def build() -> Any:
        nonlocal builds
        builds += 1
        return three(model)

    await engine.start([Source("crew", build, static=True)])
    at_start = builds
    results = await asyncio.gather(
        *(engine.run("crew", {"topic": f"value-{n}-end", "year": n}) for n in range(50))
    )
    await engine.aclose()
    assert builds == at_start
    for number, result in enumerate(results):
        assert set(_VALUE.findall(result.raw)) == {str(number)}
    outputs = [result.output.tasks_output[0] for result in results]
    assert len({id(output) for output in outputs}) == len(outputs)


def _left_in(folder: Path) -> list[Path]:
    return list(folder.glob("*memory*"))


async def test_a_crews_memory_lasts_as_long_as_its_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))
    model = _Echo()
    known: dict[int, list[str]] = {}

    def build() -> Crew:
        crew = three(model)
        memory = Memory(llm=model, embedder=lambda texts: [[0.1, 0.2] for _ in texts])
        crew = Crew(agents=crew.agents, tasks=crew.tasks, memory=memory)

        def remember(output: Any) -> None:
            number = _VALUE.findall(output.raw)[0]
            memory.drain_writes()
            kept = known.setdefault(int(number), [])
            kept.extend(record.content for record in memory._storage.list_records())

        crew.tasks[-1].callback = remember
        return crew

    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", build)])
    for group in (range(4), range(4, 8)):  # side by side, and one after the other
        await asyncio.gather(
            *(engine.run("crew", {"topic": f"value-{n}-end", "year": n}) for n in group)
        )
    await engine.aclose()
    # What a run finds in its memory is its own.
    assert set(known) == set(range(8))
    for number, texts in known.items():
        assert {value for text in texts for value in _VALUE.findall(text)} == {str(number)}
    assert _left_in(tmp_path) == []


@pytest.mark.parametrize("options", [{}, FUNCTIONS])
@pytest.mark.parametrize("built_once", [False, True])
async def test_a_tool_that_runs_share_counts_the_uses_of_each(
    options: Any, built_once: bool
) -> None:
    """Of a tool at module level that may be used once, each run has a use."""

    @tool("counter", max_usage_count=1)
    def counter(text: str) -> str:
        """Count."""
        return "counted"

    model = RecordingLLM(function_calls("counter") if options else react("counter"), **options)
    build = functools.partial(one({"tools": [counter]}, {"tools": [counter]}), model)
    crew = build() if built_once else None
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", lambda: crew or build())])
    for group in (range(3), range(3, 6)):  # side by side, and one after the other
        await asyncio.gather(
            *(engine.run("crew", {"topic": f"value-{n}-end", "year": n}) for n in group)
        )
    await engine.aclose()
    ends = [str(request.messages) for request in model.requests if request.turn == 1]
    assert len(ends) == 6
    assert all("counted" in end for end in ends)
    assert counter.current_usage_count == 0
