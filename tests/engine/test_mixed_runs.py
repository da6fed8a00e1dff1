"""Runs of crews with different features at the same time: each run sees its own inputs only."""

import asyncio
import re
from functools import partial
from random import Random

import pytest
from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource

from app.engine import CrewResult, Engine
from tests.engine.crews import (
    FUNCTIONS,
    THREE_STEPS,
    Case,
    delegates,
    delegation,
    follows_plan,
    function_calls,
    one,
    planned,
    plans_tasks,
    react,
    ready_at,
    shout,
    skilled,
    subclasses,
    three,
    two,
)
from tests.engine.recording import Source, SyncLLM
from tests.engine.words_server import WORDS, repeats

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_RUNS_OF_EACH = 60
_AT_ONCE = 500
_FACTS = StringKnowledgeSource(content="Tea is a drink.")

_CASES = [
    Case("plan", three),
    Case("tracing", one({"allow_code_execution": True}, {}, {"tracing": True})),
    Case(
        "calls",
        one({"tools": [shout]}, {}, {"checkpoint": True}),
        "native",
        answer=function_calls("shout"),
        model=FUNCTIONS,
    ),
    Case("delegation", delegation, "native", answer=delegates),
    Case("no-acall", two(), "native", kind=SyncLLM),
    Case("planner", planned(two()), "native", answer=plans_tasks),
    Case("reasoning", one({"reasoning": True}), "native", answer=ready_at(1)),
    Case(
        "steps",
        one({"planning": True}),
        "native",
        answer=follows_plan(*THREE_STEPS),
        model=FUNCTIONS,
    ),
    Case("skills", skilled, "native", answer=react("load_skill")),
    Case("subclasses", partial(subclasses, tools=[shout]), "native", answer=react("shout")),
    Case("limited", two({"tools": [shout]}, {}, {"max_rpm": 9}), "native"),
    Case("memory", two({}, {}, {"memory": True}), "native"),
    Case("agent-memory", one({"memory": True}), "native"),
    Case("knowledge", two({}, {}, {"knowledge_sources": [_FACTS]}), "native"),
    Case("agent-knowledge", one({"knowledge_sources": [_FACTS]}), "native"),
    Case("mcp", one({"mcps": [WORDS]}), "native", answer=repeats, model=FUNCTIONS),
]
_TOPIC = re.compile(r"topic-[a-z-]+-\d+", re.IGNORECASE)


async def test_nothing_is_mixed_between_runs_of_many_crews() -> None:
    models = {case.name: case.kind(case.answer, **case.model) for case in _CASES}
    engine = Engine(model=models["plan"], mode="auto", max_stock_threads=_AT_ONCE)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def run(case: Case, number: int) -> None:
        topic = f"topic-{case.name}-{number}"
        async with slots:
            result = await engine.run(case.name, {"topic": topic, "year": number})
        assert isinstance(result, CrewResult)
        assert result.execution_mode == case.execution_mode
        assert _topics(result.output.model_dump()) == {topic}

    try:
        await engine.start(
            [Source(case.name, partial(case.build, models[case.name])) for case in _CASES]
        )
        runs = [(case, number) for case in _CASES for number in range(_RUNS_OF_EACH)]
        Random(7).shuffle(runs)
        await asyncio.gather(*(run(case, number) for case, number in runs))
    finally:
        await engine.aclose()
    for case in _CASES:
        requests = models[case.name].requests
        topics = [_topics([request.messages, request.task]) for request in requests]
        assert all(len(found) == 1 for found in topics), case.name
        assert len(set.union(*topics)) == _RUNS_OF_EACH


def _topics(texts: object) -> set[str]:
    return {topic.lower() for topic in _TOPIC.findall(str(texts))}
