"""Crews that combine the features of CrewAI, and many of their runs at once.

    python -m tests.engine.mixed --crews 60 --runs 500

Of every two features of different kinds, at least one of the 60 crews has both. Each crew first
runs alone, and equals stock CrewAI call by call. Then all runs happen at once, each with its own
topic: a request or a result with another topic is a fault.
"""

import argparse
import asyncio
import contextvars
import functools
import itertools
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from app.engine import CrewResult, Engine, RunFailed

from crewai import Agent, Crew, Process, Task  # isort: skip
from crewai.knowledge.source.string_knowledge_source import (  # isort: skip
    StringKnowledgeSource,
)
from crewai.llms.base_llm import BaseLLM  # isort: skip
from crewai.memory.unified_memory import Memory  # isort: skip
from crewai.utilities import llm_utils  # isort: skip
from crewai_files import TextFile  # isort: skip

from tests.engine.crews import (
    FUNCTIONS,
    TEMPLATES,
    THREE_STEPS,
    OwnAgent,
    OwnCrew,
    OwnTask,
    Report,
    final_word,
    follows_plan,
    shout,
    strict,
)
from tests.engine.memories import (
    EMBEDDED,
    EMBEDDER,
    comparable,
    digest_of,
    own_storages,
    without_recalled,
)
from tests.engine.recording import (
    Ran,
    RecordingLLM,
    Request,
    Source,
    SyncLLM,
    grouped,
    run_reference,
    shown,
)
from tests.engine.words_server import WORDS, words_by_http

CREWS = 60
_TOPIC = re.compile(r"topic-[a-z0-9-]+-\d+", re.IGNORECASE)
_SEED = 7


@dataclass
class Parts:
    """What a crew is built from."""

    name: str
    model: BaseLLM
    mcp: Any
    agents: list[dict[str, Any]] = field(default_factory=lambda: [{}, {}, {}])
    tasks: list[dict[str, Any]] = field(default_factory=lambda: [{}, {}, {}])
    crew: dict[str, Any] = field(default_factory=dict)
    kinds: tuple[type[Agent], type[Task], type[Crew]] = (Agent, Task, Crew)

    def build(self) -> Crew:
        agent_kind, task_kind, crew_kind = self.kinds
        agents = [
            agent_kind(
                **{
                    "role": f"Expert {number} for {{topic}}",
                    "goal": "Know all about {topic}\n",
                    "backstory": "You have studied {topic}.",
                    "llm": self.model,
                    **options,
                }
            )
            for number, options in enumerate(self.agents, start=1)
        ]
        tasks = [
            task_kind(
                **{
                    "description": f"Task {number}: write about {{topic}} in 2031.",
                    "expected_output": "A text on {topic}",
                    "agent": agent,
                    **options,
                }
            )
            for number, (options, agent) in enumerate(zip(self.tasks, agents, strict=True), start=1)
        ]
        return crew_kind(agents=agents, tasks=tasks, **self.crew)


Feature = Callable[[Parts], None]


def _agent(**options: Any) -> Feature:
    return lambda parts: parts.agents[0].update(options)


def _task(**options: Any) -> Feature:
    return lambda parts: parts.tasks[0].update(options)


def _last(**options: Any) -> Feature:
    return lambda parts: parts.tasks[-1].update(options)


def _crew(**options: Any) -> Feature:
    return lambda parts: parts.crew.update(options)


def _side_by_side(parts: Parts) -> None:
    for options in parts.tasks[:-1]:
        options["async_execution"] = True


def _hierarchical(parts: Parts) -> None:
    parts.crew.update(process=Process.hierarchical, manager_llm=parts.model)


def _memory(parts: Parts) -> None:
    parts.crew["memory"] = Memory(llm=parts.model, embedder=EMBEDDER, root_scope="/x")


def _agent_memory(parts: Parts) -> None:
    parts.agents[0]["memory"] = Memory(llm=parts.model, embedder=EMBEDDER)


def _knowledge(parts: Parts) -> None:
    # Distinct parts: of equal ones, stock finds any.
    content = "Tea is a drink. Water boils at 100 degrees. Green leaves are steamed in Japan."
    source = StringKnowledgeSource(content=content, chunk_size=30, chunk_overlap=4)
    parts.crew.update(knowledge_sources=[source], **EMBEDDED)


def _agent_knowledge(parts: Parts) -> None:
    source = StringKnowledgeSource(content="Tea is old.")
    parts.agents[0].update(knowledge_sources=[source], **EMBEDDED)


def _mcp(parts: Parts) -> None:
    parts.agents[0]["mcps"] = [parts.mcp]


def _files(parts: Parts) -> None:
    parts.tasks[0]["input_files"] = {"note": TextFile(source=b"Tea is green.")}


def _planner(parts: Parts) -> None:
    parts.crew.update(planning=True, planning_llm=parts.model)


def _checked(parts: Parts) -> None:
    parts.tasks[0]["guardrail"] = strict(2)


def _structured(**options: Any) -> Feature:
    return _last(expected_output="A report as JSON on {topic}", **options)


def _named(parts: Parts) -> None:
    parts.agents[0]["llm"] = parts.agents[1]["llm"] = f"openai/{parts.name}"


def _callbacks(parts: Parts) -> None:
    seen: list[str] = []

    def note(output: Any) -> None:
        seen.append(str(getattr(output, "raw", None) or getattr(output, "output", "?")))

    def before(inputs: dict[str, Any] | None) -> dict[str, Any]:
        return {**(inputs or {}), "more": "more"}

    def after(output: Any) -> Any:
        output.raw += " | " + " | ".join(sorted(seen))
        return output

    parts.agents[0]["step_callback"] = note
    parts.crew.update(
        task_callback=note, before_kickoff_callbacks=[before], after_kickoff_callbacks=[after]
    )


def _subclasses(parts: Parts) -> None:
    parts.kinds = (OwnAgent, OwnTask, OwnCrew)


_SKILL = """---
name: brewing
description: How to brew {topic}
---
Boil water for {topic}."""

# Kinds of features; a crew has one of each kind.
KINDS: Mapping[str, Mapping[str, Feature]] = {
    "structure": {
        "sequence": lambda parts: None,
        "side by side": _side_by_side,
        "hierarchical": _hierarchical,
        "delegation": _agent(allow_delegation=True),
    },
    "memory": {"": lambda parts: None, "memory": _memory, "agent's memory": _agent_memory},
    "knowledge": {
        "": lambda parts: None,
        "knowledge": _knowledge,
        "agent's knowledge": _agent_knowledge,
    },
    "tools": {
        "": lambda parts: None,
        "tool": _agent(tools=[shout]),
        "tool of a task": _task(tools=[shout]),
        "final tool": _agent(tools=[final_word]),
        "MCP": _mcp,
        "input files": _files,
    },
    "thinking": {
        "": lambda parts: None,
        "planner": _planner,
        "reasoning": _agent(reasoning=True),
        "steps": _agent(planning=True),
    },
    "checks": {
        "": lambda parts: None,
        "guardrail": _checked,
        "guardrail in words": _task(guardrail="be polite"),
    },
    "output": {
        "": lambda parts: None,
        "output_json": _structured(output_json=Report),
        "output_pydantic": _structured(output_pydantic=Report),
        "response_model": _structured(response_model=Report),
    },
    "limits": {
        "": lambda parts: None,
        "max_rpm": _crew(max_rpm=99),
        "agent's max_rpm": _agent(max_rpm=99),
        "max_execution_time": _agent(max_execution_time=300),
    },
    "model": {
        "text": lambda parts: None,
        "functions": lambda parts: None,
        "no acall": lambda parts: None,
        "named": _named,
    },
    "more": {
        "": lambda parts: None,
        "callbacks": _callbacks,
        "skills": _agent(skills=[_SKILL]),
        "subclasses": _subclasses,
        "multimodal": _agent(multimodal=True),
        "code execution": _agent(allow_code_execution=True),
        "tracing and checkpoints": _crew(tracing=True, checkpoint=True),
        "templates": _agent(**TEMPLATES),
    },
}


# Stock raises for their results.
_NOT_IN_STOCK = (("output", "output_json"), ("structure", "hierarchical"))


@dataclass(frozen=True)
class Mixed:
    """A crew of one feature of each kind."""

    number: int
    features: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"mixed-{self.number}"

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(filter(None, self.features.values()))}"

    @property
    def recalls_by_chance(self) -> bool:
        """Whether tasks side by side share a memory.

        In stock, what one recalls of another depends on time. Its model ignores recalled memories,
        and they and the memory's own calls are not compared.
        """
        return (self.features["structure"], self.features["memory"]) == ("side by side", "memory")

    def model(self) -> SyncLLM:
        kind = SyncLLM if self.features["model"] == "no acall" else RecordingLLM
        options = FUNCTIONS if self.features["model"] == "functions" else {}
        return kind(_forgetful if self.recalls_by_chance else answers, **options)

    def compared(self, ran: Ran) -> dict[tuple[str, str], list[str]]:
        """The calls of a run as they are compared."""
        if not self.recalls_by_chance:
            return comparable(ran.calls)
        calls = {
            key: list(map(without_recalled, made)) for key, made in ran.calls.items() if key[0]
        }
        return comparable(calls)

    def build(self, model: BaseLLM, mcp: Any) -> Crew:
        parts = Parts(self.name, model, mcp)
        for kind, name in self.features.items():
            KINDS[kind][name](parts)
        return parts.build()


def mixed_crews(count: int = CREWS) -> list[Mixed]:
    """The same `count` crews each time. The first 60 have all pairs of features."""
    random = Random(_SEED)
    missing = set(_all_pairs())
    crews = []
    for number in range(count):
        choices = [
            {kind: random.choice(list(names)) for kind, names in KINDS.items()} for _ in range(300)
        ]
        possible = (choice for choice in choices if _NOT_IN_STOCK not in _pairs(choice))
        best = max(possible, key=lambda choice: len(missing.intersection(_pairs(choice))))
        missing.difference_update(_pairs(best))
        crews.append(Mixed(number, best))
    return crews


def missing_pairs(crews: Sequence[Mixed]) -> set[tuple[tuple[str, str], tuple[str, str]]]:
    """The pairs of features that no crew has."""
    return set(_all_pairs()).difference(*(_pairs(crew.features) for crew in crews))


def _pairs(features: Mapping[str, str]) -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    yield from itertools.combinations(sorted(features.items()), 2)


def _all_pairs() -> Iterator[tuple[tuple[str, str], tuple[str, str]]]:
    for one, other in itertools.combinations(sorted(KINDS), 2):
        for first, second in itertools.product(KINDS[one], KINDS[other]):
            if (pair := ((one, first), (other, second))) != _NOT_IN_STOCK:
                yield pair


# Tools that an agent calls in its first turn, with their arguments; the first that it has.
_CALLS: Mapping[str, Mapping[str, Any]] = {
    "delegate_work_to_coworker": {"task": "Help", "context": "none", "coworker": "Expert 2"},
    "repeat": {"text": "twice"},
    "shout": {"text": "loud"},
    "final_word": {"text": "bye"},
}
_WORDS = ("tea", "leaves", "are", "green", "and", "grow", "on", "hills", "in", "rainy", "springs")
_STRUCTURES: Mapping[str, Callable[[str], Any]] = {
    "Report": lambda note: {"title": note, "points": ["a"]},
    "ExtractedMemories": lambda note: {"memories": [f"fact: {note}", "tea is green"]},
    "MemoryAnalysis": lambda note: {"suggested_scope": "/notes", "categories": ["tea"]},
    "ConsolidationPlan": lambda note: {"actions": [], "insert_new": True},
    "QueryAnalysis": lambda note: {"recall_queries": [note], "complexity": "simple"},
}
_SIGNS: Mapping[str, str] = {
    "extract discrete": "ExtractedMemories",
    "Existing scopes": "MemoryAnalysis",
    "EXISTING": "ConsolidationPlan",
    "recall_queries": "QueryAnalysis",
    "points": "Report",
}


def answers(request: Request, nth: int) -> Any:
    """Answers by the request alone, with the topics that it names."""
    topics = sorted(_topics(request.messages))
    digest = digest_of(request)
    # Memories of several lengths: of equally near ones, rounding decides which is first.
    words = " ".join(_WORDS[: 1 + int(digest, 16) % len(_WORDS)])
    note = f"{digest} for {' and '.join(topics)}, {words}"
    if request.role == "Task Execution Planner":
        plans = [{"task_number": n, "task": "t", "plan": f" Plan {n} {note}"} for n in (1, 2, 3)]
        return json.dumps({"list_of_plans_per_task": plans})
    if request.response_model == "StepObservation" or "create_reasoning_plan" in _names(request):
        return follows_plan(*THREE_STEPS)(request, nth)
    if (kind := request.response_model) and kind in _STRUCTURES:
        found = _STRUCTURES[kind](note)
        return json.dumps(found) if kind == "Report" else found
    return _of_agent(request, note) if request.task else _without_task(request, note)


def _forgetful(request: Request, nth: int) -> Any:
    return answers(without_recalled(request), nth)


def _of_agent(request: Request, note: str) -> Any:
    if "READY" in request.last:
        return f"plan {note}\nREADY: I am ready to execute the task."
    if request.turn == 0 and (call := _call(request)):
        return call
    if "A report as JSON" in request.last:
        return json.dumps(_STRUCTURES["Report"](note))
    return f"Thought: I know\nFinal Answer: answer {note}"


def _call(request: Request) -> Any:
    """The first of the calls whose tool the agent has, as a function call or by text."""
    names, text = _names(request), str(request.messages)
    for name, arguments in _CALLS.items():
        given = json.dumps(arguments)
        for found in (known for known in names if name in known):
            function = {"name": found, "arguments": given}
            return [{"id": "call_0", "type": "function", "function": function}]
        if not names and (shown := re.search(rf"Tool Name: (\w*{name}\w*)", text)):
            return f"Thought: need it\nAction: {shown.group(1)}\nAction Input: {given}"
    return None


def _names(request: Request) -> list[str]:
    return [tool["function"]["name"] for tool in request.tools or []]


def _without_task(request: Request, note: str) -> Any:
    text = str(request.messages)
    if "guardrail" in text.lower():
        return '{"valid": true, "feedback": null}'
    for sign, kind in _SIGNS.items():
        if sign in text:
            return json.dumps(_STRUCTURES[kind](note))
    return f"answer {note}"


def _topics(texts: object) -> set[str]:
    return {topic.lower() for topic in _TOPIC.findall(str(texts))}


class _Mix:
    """The crews with a model each, which keeps all requests, and the MCP server `mcp`."""

    def __init__(self, crews: Sequence[Mixed], mcp: Any) -> None:
        self.mcp = mcp
        self.crews = crews
        self.models = {crew.name: crew.model() for crew in crews}

    def source(self, crew: Mixed) -> Source:
        return Source(crew.name, lambda: crew.build(self.models[crew.name], self.mcp))

    async def reference(self, crew: Mixed, inputs: Mapping[str, Any]) -> Ran:
        """A run of stock CrewAI with storages of its own."""
        self.models[crew.name] = crew.model()
        for shared in (shout, final_word):
            shared.reset_usage_count()  # a planner's prompt has it
        build = functools.partial(crew.build, mcp=self.mcp)
        with own_storages():
            return await asyncio.to_thread(
                contextvars.Context().run,
                run_reference,
                build,
                self.models[crew.name],
                inputs,
            )

    async def differences(self, crew: Mixed, engine: Engine) -> list[str]:
        """What differs from stock in a run of the crew alone."""
        inputs = {"topic": f"topic-{crew.name}-0"}
        reference = await self.reference(crew, inputs)
        self.models[crew.name] = model = crew.model()
        await engine.start([self.source(crew)])
        ours = await _ran(engine, crew, model, inputs)
        model.requests.clear()
        return [
            f"{crew}: {what} differ from stock's\n{_difference(str(one), str(other))}"
            for what, one, other in (
                ("errors", ours.error, reference.error),
                ("outputs", ours.output, reference.output),
                ("calls", crew.compared(ours), crew.compared(reference)),
            )
            if one != other
        ]


def _difference(one: str, other: str) -> str:
    """The texts from where they differ."""
    pairs = enumerate(zip(one, other, strict=False))
    same = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    return "\n".join(f"  ...{text[max(0, same - 200) : same + 200]}" for text in (one, other))


async def _ran(engine: Engine, crew: Mixed, model: SyncLLM, inputs: Mapping[str, Any]) -> Ran:
    try:
        result = await engine.run(crew.name, inputs)
    except RunFailed as error:
        mode = engine.describe(crew.name).execution_mode
        return Ran(grouped(model.requests), error=str(error.__cause__), execution_mode=mode)
    assert isinstance(result, CrewResult)
    output = shown(result.output)
    return Ran(grouped(model.requests), output=output, execution_mode=result.execution_mode)


async def check(crews: Sequence[Mixed], runs: int, *, compared: int | None = None) -> list[str]:
    """The faults of `runs` runs of the crews at once; `compared` of the crews also with stock."""
    with words_by_http() as words, _named_models() as models:
        mix = _Mix(crews, WORDS)  # stock loses results of servers by HTTP
        models.append(mix.models)
        engine = Engine(
            model=RecordingLLM(answers), mode="auto", max_stock_threads=runs, max_mcp_connections=64
        )
        try:
            faults: list[str] = []
            known = crews[:compared]
            for crew in known:
                faults += await mix.differences(crew, engine)
            mix.mcp = words  # one server for all, not a process for each
            await engine.start([mix.source(crew) for crew in crews if crew not in known])
            order = [(crews[n % len(crews)], n) for n in range(runs)]
            Random(_SEED).shuffle(order)
            found = await asyncio.gather(*(_mixed_run(engine, *each) for each in order))
            faults += filter(None, found)
        finally:
            await engine.aclose()
    return faults + [fault for crew in crews for fault in _mixed_requests(mix, crew, runs)]


async def _mixed_run(engine: Engine, crew: Mixed, number: int) -> str:
    topic = f"topic-{crew.name}-{number}"
    try:
        result = await engine.run(crew.name, {"topic": topic})
    except RunFailed as error:
        return f"{crew}: a run failed: {error.__cause__!r}"
    assert isinstance(result, CrewResult)
    topics = _topics(result.output.model_dump())
    if topics != {topic}:
        return f"{crew}: the result of {topic} has {topics or 'no topic'}"
    return f"{crew}: a run as stock" if result.execution_mode == "stock" else ""


def _mixed_requests(mix: _Mix, crew: Mixed, runs: int) -> Iterator[str]:
    topics = [_topics([r.messages, r.task, r.role]) for r in mix.models[crew.name].requests]
    yield from (f"{crew}: a request has {sorted(found)}" for found in topics if len(found) > 1)
    expected = len([n for n in range(runs) if mix.crews[n % len(mix.crews)] is crew])
    if len(set().union(*topics)) != expected:
        yield f"{crew}: the requests have {len(set().union(*topics))} topics of {expected} runs"


@contextmanager
def _named_models() -> Iterator[list[dict[str, SyncLLM]]]:
    """Within this, CrewAI's class of models gives those of the mix, by the name of the crew."""
    models: list[dict[str, SyncLLM]] = []

    class Named(BaseLLM):
        def __new__(cls, model: str) -> Any:
            return models[-1][model.removeprefix("openai/")]

        def call(self, *args: Any, **kwargs: Any) -> str:
            raise AssertionError

    own = llm_utils.LLM
    llm_utils.LLM = Named  # type: ignore[assignment]
    try:
        yield models
    finally:
        llm_utils.LLM = own


def main() -> int:
    """Run the crews; 1 if anything differs from stock or is mixed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--crews", type=int, default=CREWS)
    parser.add_argument("--runs", type=int, default=500, help="all at once")
    parser.add_argument("--only", type=int, help="the number of one crew")
    options = parser.parse_args()
    crews = mixed_crews(options.crews)
    if options.only is not None:
        crews = [crews[options.only]]
    logging.disable()
    begun = time.monotonic()
    faults = asyncio.run(check(crews, options.runs))
    summary = (
        f"{len(crews)} crews, all compared with stock, "
        f"{len(missing_pairs(crews))} pairs of features missing, {options.runs} runs at once: "
        f"{len(faults)} faults in {time.monotonic() - begun:.0f} s"
    )
    print(*faults, summary, sep="\n", file=sys.__stdout__)  # stock may leave another one
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
