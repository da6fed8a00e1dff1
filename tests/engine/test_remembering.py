"""Memory and knowledge natively: call by call as stock CrewAI, models and embedders alike."""

import asyncio
import hashlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromadb.api.types import Documents, EmbeddingFunction
from crewai import Agent, Crew, Process
from crewai.knowledge.knowledge_config import KnowledgeConfig
from crewai.knowledge.source.csv_knowledge_source import CSVKnowledgeSource
from crewai.knowledge.source.json_knowledge_source import JSONKnowledgeSource
from crewai.knowledge.source.pdf_knowledge_source import PDFKnowledgeSource
from crewai.knowledge.source.string_knowledge_source import StringKnowledgeSource
from crewai.knowledge.source.text_file_knowledge_source import TextFileKnowledgeSource
from crewai.llms.base_llm import BaseLLM
from crewai.memory.types import MemoryRecord
from crewai.memory.unified_memory import Memory
from crewai.rag.chromadb import config as chroma_config
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction

from app.engine import CrewResult, Engine
from app.engine.llm import OfflineModel
from app.engine.llm.embeddings import HashEmbedder
from app.engine.memory import knowledge
from app.engine.memory.remembered import memory_of_factory
from app.engine.memory.storage import StorageOfRuns
from tests.engine.crews import INPUTS, agent, strict, task
from tests.engine.memories import analysis, comparable
from tests.engine.recording import (
    Answer,
    RecordingLLM,
    Request,
    Source,
    SyncLLM,
    hashed,
    run_engine,
    run_reference,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class _Embeds:
    """Records what it embeds: a vector of the words' hashes."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.called_on_loop = False

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(list(texts))
        self.called_on_loop |= _is_on_loop()
        return [_vector(text) for text in texts]


def _vector(text: str) -> list[float]:
    vector = np.zeros(32, np.float32)
    for word in text.lower().split():
        vector[hashlib.sha256(word.encode()).digest()[0] % 32] += 1
    return [float(x) for x in vector / max(float(np.linalg.norm(vector)), 1e-9)]


def _is_on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_recorder = _Embeds()


class _EmbeddingFunction(CustomEmbeddingFunction, EmbeddingFunction[Documents]):
    """The same for knowledge: CrewAI requires one of these for crews, and the other for agents."""

    def __init__(self) -> None: ...

    def __call__(self, input: Any) -> Any:  # noqa: A002 - CrewAI's name
        return [np.array(vector, np.float32) for vector in _recorder(list(input))]


_EMBEDDER = {"provider": "custom", "config": {"embedding_callable": _EmbeddingFunction}}


def _memory(model: BaseLLM, **options: Any) -> Memory:
    return Memory(llm=model, embedder=_recorder, **options)


def _action(*uses: tuple[str, Mapping[str, Any]]) -> Answer:
    """Uses tools by text, one after the other, and then gives the answer."""

    def answer(request: Request, nth: int) -> Any:
        if not request.task:
            return analysis(request, nth)
        if nth < len(uses):
            name, arguments = uses[nth]
            return f"Thought: use\nAction: {name}\nAction Input: {json.dumps(arguments)}"
        return f"Thought: done\nFinal Answer: {request.digest}"

    return answer


@dataclass(frozen=True)
class _Case:
    name: str
    build: Callable[[BaseLLM], Crew]
    answer: Answer = hashed
    # Factories embed at start, too; and stock embeds sources again for each executor.
    embeds_once_a_run: bool = True


_LONG = "Write about {topic}. " * 15


def _crew(
    model: BaseLLM,
    agents: Sequence[Mapping[str, Any]] = ({}, {}),
    tasks: Sequence[Mapping[str, Any]] = ({}, {}),
    **options: Any,
) -> Crew:
    experts = [agent(model, number, **more) for number, more in enumerate(agents, start=1)]
    work = [
        task(experts[(number - 1) % len(experts)], number, **more)
        for number, more in enumerate(tasks, start=1)
    ]
    return Crew(agents=experts, tasks=work, **options)


def _scoped(model: BaseLLM) -> Crew:
    memory = _memory(model)
    memory.remember("tea is hot", scope="/facts", categories=["tea"], importance=0.9)
    return _crew(model, memory=memory.scope("/facts"))


def _sliced(model: BaseLLM) -> Crew:
    memory = _memory(model)
    memory.remember("tea is hot", scope="/facts", categories=["tea"], importance=0.9)
    memory.remember("tea in china", scope="/places", categories=["tea"], importance=0.1)
    parts = memory.slice(["/facts", "/places"], read_only=True)
    return _crew(model, memory=parts)


def _text(number: int) -> StringKnowledgeSource:
    lines = (hashlib.sha256(f"{number} {line}".encode()).hexdigest() for line in range(20))
    content = " ".join(f"Tea is {line[:3]} and {line[3:5]} in {line[5:7]}." for line in lines)
    return StringKnowledgeSource(content=content, chunk_size=100, chunk_overlap=9)


_MEMORY = [
    _Case("memory=True", lambda m: _crew(m, memory=True, name="Tea Crew", embedder=_EMBEDDER)),
    _Case("a memory of its own", lambda m: _crew(m, memory=_memory(m))),
    _Case("analyses as JSON", lambda m: _crew(m, memory=_memory(m, root_scope="/x")), analysis),
    _Case("a long query", lambda m: _crew(m, tasks=[{}, {"description": _LONG}], memory=_memory(m)),
          analysis),
    _Case("an agent's memory", lambda m: _crew(m, [{"memory": _memory(m)}, {}])),
    _Case("a scope", _scoped, analysis, embeds_once_a_run=False),
    _Case("a slice", _sliced, analysis, embeds_once_a_run=False),
    _Case("read only", lambda m: _crew(m, memory=_memory(m, read_only=True))),
    _Case("asynchronous tasks", lambda m: _crew(
        m, [{"memory": _memory(m)}, {"memory": _memory(m)}, {}],
        [{"async_execution": True}, {"async_execution": True}, {}])),
    _Case("memory tools", lambda m: _crew(m, [{}], [{}], memory=_memory(m)), _action(
        ("Save to memory", {"contents": ["tea is old"]}),
        ("Save to memory", {"contents": ["tea is hot", "water is wet"]}),
        ("Search memory", {"queries": ["tea", "water"]}))),
    _Case("hierarchical", lambda m: _crew(
        m, memory=_memory(m), process=Process.hierarchical, manager_llm=m)),
    _Case("an embedder that fails", lambda m: _crew(m, memory=Memory(llm=m, embedder=_fail))),
]  # fmt: skip


def _fail(texts: Sequence[str]) -> Any:
    raise OSError("no embedder")


_KNOWLEDGE = [
    _Case("a crew's knowledge", lambda m: _crew(
        m, knowledge_sources=[_text(1), _text(2)], embedder=_EMBEDDER), embeds_once_a_run=False),
    _Case("an agent's knowledge", lambda m: _crew(
        m, [{"knowledge_sources": [_text(3)], "embedder": _EMBEDDER}, {}]),
        embeds_once_a_run=False),
    _Case("both, with limits", lambda m: _crew(
        m,
        [{"knowledge_sources": [_text(4)],
          "knowledge_config": KnowledgeConfig(results_limit=2, score_threshold=0.1)}],
        knowledge_sources=[_text(5)], embedder=_EMBEDDER), embeds_once_a_run=False),
    _Case("with memory", lambda m: _crew(
        m, knowledge_sources=[_text(6)], embedder=_EMBEDDER, memory=_memory(m)), analysis,
        embeds_once_a_run=False),
]  # fmt: skip
_CASES = _MEMORY + _KNOWLEDGE

_FILES = {
    "tea.csv": "kind,colour\nsencha,green\nassam,black\n",
    "tea.json": '{"sencha": {"colour": "green"}, "assam": "black"}',
    "tea.txt": "Sencha is green tea. Assam is black tea. " * 9,
    "tea.pdf": """%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 144]/Contents 4 0 R/Resources<</Font<</F1
5 0 R>>>>>>endobj
4 0 obj<</Length 49>>stream
BT /F1 18 Tf 10 100 Td (Sencha is green tea.) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
trailer<</Root 1 0 R>>
""",
}
_SOURCES: Mapping[str, type[Any]] = {
    "tea.csv": CSVKnowledgeSource,
    "tea.json": JSONKnowledgeSource,
    "tea.txt": TextFileKnowledgeSource,
    "tea.pdf": PDFKnowledgeSource,
}


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path / "crewai"))
    monkeypatch.setattr(chroma_config, "DEFAULT_STORAGE_PATH", str(tmp_path / "chroma"))
    knowledge._embeddings._known.clear()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _recorder.calls.clear()
    _recorder.called_on_loop = False


@pytest.mark.parametrize("case", _CASES, ids=[case.name for case in _CASES])
async def test_a_crew_remembers_and_knows_as_in_stock(case: _Case, tmp_path: Path) -> None:
    model = RecordingLLM(case.answer)
    reference = await asyncio.to_thread(run_reference, case.build, model, INPUTS)
    assert reference.error is None
    embedded = sorted(map(sorted, _recorder.calls))
    _recorder.calls.clear()
    _recorder.called_on_loop = False
    locks = _locks(tmp_path)
    model = RecordingLLM(case.answer)
    ours = await run_engine(case.build, model, INPUTS, "auto")
    assert ours.error is None
    assert ours.execution_mode == "native"
    assert comparable(ours.calls) == comparable(reference.calls)
    assert ours.output == reference.output
    assert not _recorder.called_on_loop
    assert _locks(tmp_path) == locks
    if case.embeds_once_a_run:
        assert sorted(map(sorted, _recorder.calls)) == embedded
    else:
        assert set(chain(*_recorder.calls)) == set(chain(*embedded))


def _locks(folder: Path) -> set[Path]:
    """CrewAI's lock files, which it never removes."""
    return set(folder.glob("crewai:*"))


@pytest.mark.parametrize("name", _FILES)
async def test_files_are_known_as_in_stock(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "knowledge").mkdir()
    (tmp_path / "knowledge" / name).write_text(_FILES[name])

    def build(model: BaseLLM) -> Crew:
        source = _SOURCES[name](file_paths=[name], chunk_size=100, chunk_overlap=9)
        sources = {"knowledge_sources": [source], "embedder": _EMBEDDER}
        limits = KnowledgeConfig(score_threshold=0.0)
        return _crew(model, [{**sources, "knowledge_config": limits}], [{}])

    reference = await asyncio.to_thread(run_reference, build, RecordingLLM(), INPUTS)
    ours = await run_engine(build, RecordingLLM(), INPUTS, "auto")
    assert ours.execution_mode == "native"
    assert comparable(ours.calls) == comparable(reference.calls)
    assert any("encha" in call.last for call in chain(*reference.calls.values()))
    assert not _recorder.called_on_loop


async def test_sources_are_embedded_once_for_all_runs() -> None:
    model = RecordingLLM()
    engine = Engine(model=model, mode="auto", max_stock_threads=4)

    def build() -> Crew:
        expert = {"knowledge_sources": [_text(1)], "embedder": _EMBEDDER}
        return _crew(model, [expert], [{}], knowledge_sources=[_text(2)], embedder=_EMBEDDER)

    await engine.start([Source("crew", build)])
    await engine.run("crew", INPUTS)
    chunks = Counter(text for text in chain(*_recorder.calls) if "Tea is" in text)
    assert len(chunks) > 10
    await asyncio.gather(*(engine.run("crew", INPUTS) for _ in range(5)))
    await engine.aclose()
    assert Counter(text for text in chain(*_recorder.calls) if "Tea is" in text) == chunks
    assert set(chunks.values()) == {1}


async def test_crews_and_runs_do_not_share_the_sources_of_others() -> None:
    model = RecordingLLM()
    shared = _text(7)  # as at module level

    def build(number: int) -> Callable[[], Crew]:
        limits = KnowledgeConfig(results_limit=100, score_threshold=0.0)
        return lambda: _crew(
            model,
            [{"knowledge_config": limits}],
            [{}],
            knowledge_sources=[shared, _text(number)],
            embedder=_EMBEDDER,
        )

    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("one", build(1)), Source("two", build(2))])
    names = ["one", "two"] * 5
    await asyncio.gather(*(engine.run(name, INPUTS) for name in names))
    await engine.aclose()
    prompts = [call.last for call in model.requests if call.task]
    chunks = [
        {text for text in set(chain(*_recorder.calls)) if text in prompt} for prompt in prompts
    ]
    assert sorted(Counter(map(frozenset, chunks)).values()) == [5, 5]
    assert shared.chunks == []


async def test_a_crews_own_storage_is_called_off_the_event_loop() -> None:
    called: list[bool] = []

    class Storage:
        def search(self, *args: Any, **options: Any) -> list[Any]:
            called.append(_is_on_loop())
            return []

        def save(self, records: list[Any]) -> None:
            called.append(_is_on_loop())

        def list_scopes(self, parent: str = "/") -> list[str]:
            called.append(_is_on_loop())
            return []

        def list_categories(self, scope_prefix: str | None = None) -> dict[str, int]:
            return {}

    def build(model: BaseLLM) -> Crew:
        return _crew(model, memory=_memory(model, storage=Storage()))

    ours = await run_engine(build, RecordingLLM(), INPUTS, "auto")
    assert ours.execution_mode == "native"
    assert len(called) > 4
    assert not any(called)


async def test_agents_with_memory_recall_what_others_of_the_run_have_saved() -> None:
    """In CrewAI, an agent's storage has what was there when the agent was built."""
    own: Mapping[str, Any] = {"memory": True}
    ours = await run_engine(lambda model: _crew(model, [own, own]), RecordingLLM(), INPUTS, "auto")
    assert ours.execution_mode == "native"
    first, second = (made[0].last for (task_, _), made in ours.calls.items() if task_)
    assert "Relevant memories" not in first
    assert "Relevant memories" in second
    assert "Agent: Expert 1 for tea" in second


def test_a_memory_compares_saves_with_what_it_saw_when_it_was_searched() -> None:
    """Otherwise the order in which concurrent saves end would decide what models are sent."""
    record = MemoryRecord(content="tea is hot", scope="/notes", embedding=[1.0])
    with memory_of_factory():
        ours, others = StorageOfRuns("lancedb"), StorageOfRuns("lancedb")
        others.save([record])
        assert [found.id for found, _ in others.search([1.0])] == [record.id]
        assert ours.search([1.0]) == []
        assert ours.list_scopes() == []
        ours.see_all()
        assert [found.id for found, _ in ours.search([1.0])] == [record.id]
        assert ours.list_scopes() == ["/notes"]
        others.update(record.model_copy(update={"content": "tea is cold"}))
        assert [found.content for found, _ in ours.search([1.0])] == ["tea is cold"]


async def test_models_of_a_memory_are_called_without_threads() -> None:
    """100 runs at once wait for the analyses of their memories, with four threads."""
    waiting = 0
    at_once = 0
    all_wait = asyncio.Event()

    class Slow(RecordingLLM):
        async def acall(self, messages: Any, *args: Any, **options: Any) -> Any:
            nonlocal waiting, at_once
            if "extract discrete" in str(messages):
                waiting += 1
                at_once = max(at_once, waiting)
                if waiting == _MANY:
                    all_wait.set()
                await all_wait.wait()
                waiting -= 1
            return await super().acall(messages, *args, **options)

    model = Slow()
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", lambda: _crew(model, [{}], [{}], memory=True))])
    inputs = [{"topic": f"<{number}>", "year": number} for number in range(_MANY)]
    results = await asyncio.gather(*(engine.run("crew", one) for one in inputs))
    await engine.aclose()
    assert at_once == _MANY
    assert {result.execution_mode for result in results} == {"native"}
    for request in model.requests:
        assert len(set(re.findall(r"<\d+>", str(request.messages)))) == 1


_MANY = 100


async def test_a_cancelled_run_ends_the_saves_of_its_memory() -> None:
    begun = asyncio.Event()
    cancelled: list[bool] = []

    class Hanging(RecordingLLM):
        async def acall(self, messages: Any, *args: Any, **options: Any) -> Any:
            if "Existing scopes" in str(messages):
                begun.set()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    cancelled.append(True)
                    raise
            return await super().acall(messages, *args, **options)

    model = Hanging()
    engine = Engine(model=model, mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", lambda: _crew(model, memory=True))])
    run = asyncio.create_task(engine.run("crew", INPUTS))
    await begun.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await engine.aclose()
    assert cancelled == [True]


async def test_the_offline_model_needs_no_network_for_memory_and_knowledge() -> None:
    def build() -> Crew:
        openai: Any = {"provider": "openai", "config": {"model_name": "text-embedding-3-small"}}
        experts = [Agent(role=f"R{n}", goal="g", backstory="b") for n in (1, 2)]
        work = [task(expert, number) for number, expert in enumerate(experts)]
        source = _text(1)
        return Crew(
            agents=experts, tasks=work, memory=True, knowledge_sources=[source], embedder=openai
        )

    engine = Engine(model=OfflineModel(), mode="auto", max_stock_threads=4)
    await engine.start([Source("crew", build)])
    result = await engine.run("crew", INPUTS)
    await engine.aclose()
    assert isinstance(result, CrewResult)
    assert result.execution_mode == "native"


def test_the_local_embedder_finds_the_nearest_text() -> None:
    texts = ["Tea is grown in China", "Cars are made in Detroit", "The cat sleeps all day", ""]
    tea, cars, cat, empty = HashEmbedder()(texts)
    near = HashEmbedder()(["Where do they grow tea?"])[0]
    assert near @ tea > 0.2 > max(near @ cars, near @ cat, near @ empty)
    assert [float(np.linalg.norm(v)) for v in (tea, cars, cat, empty)] == pytest.approx([1] * 4)


async def test_saves_in_the_background_need_no_thread_that_waits_for_them() -> None:
    """A guardrail's retry recalls in a thread, and waits for saves, which need threads, too."""

    def build(model: BaseLLM) -> Crew:
        memory = Memory(llm=model, embedder=HashEmbedder())
        a, b = agent(model, 1), agent(model, 2)
        tasks = [task(a, 1), task(b, 2, guardrail=strict(2))]
        return Crew(agents=[a, b], tasks=tasks, memory=memory)

    model = SyncLLM(analysis)
    engine = Engine(model=model, mode="auto", max_stock_threads=1)
    await engine.start([Source("crew", lambda: build(model))])
    async with asyncio.timeout(120):
        result = await engine.run("crew", INPUTS)
    await engine.aclose()
    assert result.execution_mode == "native"
    assert result.raw.endswith("(checked)")
