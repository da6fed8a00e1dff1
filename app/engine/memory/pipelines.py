"""CrewAI's recall and save of memories without its flows: the same steps in the same order.

CrewAI builds a flow for each, whose steps run in threads that wait for models. Here the steps are
CrewAI's own functions, which wait in a greenlet, or in the thread of the tool that calls them.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

from crewai import Crew
from crewai.memory import encoding_flow, recall_flow
from crewai.memory.encoding_flow import EncodingFlow, EncodingState
from crewai.memory.recall_flow import RecallFlow, RecallState
from crewai.memory.storage import factory
from crewai.memory.types import MemoryConfig
from crewai.memory.unified_memory import Memory

from app.engine.memory.storage import StorageOfRuns, off_loop
from app.engine.runtime.context import RunContext, current_run
from app.engine.runtime.waiting import Work, in_background, is_suspendable

_own_init = Memory.model_post_init
_own_threads = ThreadPoolExecutor
_own_drain_writes = Memory.drain_writes
_own_drain = Crew._drain_memory_writes


def _step(method: Any) -> Callable[..., Any]:
    """The function behind a method of a flow."""
    function: Callable[..., Any] = method.unwrap()
    return function


class _Pipeline:
    """The state of a flow, and what its steps use."""

    def __init__(
        self, storage: Any, llm: Any, embedder: Any, config: MemoryConfig | None = None
    ) -> None:
        self._storage = storage
        self._llm = llm
        self._embedder = embedder
        self._config = config or MemoryConfig()
        self.state: Any = None


class Recall(_Pipeline):
    """Replaces `RecallFlow`."""

    analyze_query_step = _step(RecallFlow.analyze_query_step)
    filter_and_chunk = _step(RecallFlow.filter_and_chunk)
    search_chunks = _step(RecallFlow.search_chunks)
    decide_depth = _step(RecallFlow.decide_depth)
    recursive_exploration = _step(RecallFlow.recursive_exploration)
    re_search = _step(RecallFlow.re_search)
    re_decide_depth = _step(RecallFlow.re_decide_depth)
    synthesize_results = _step(RecallFlow.synthesize_results)
    _do_search = RecallFlow._do_search
    _merged_categories = RecallFlow._merged_categories

    def kickoff(self, inputs: dict[str, Any]) -> None:
        self.state = RecallState(**inputs)
        self.analyze_query_step()
        self.filter_and_chunk()
        self.search_chunks()
        route = self.decide_depth()
        while route == "explore_deeper":
            self.recursive_exploration()
            self.re_search()
            route = self.re_decide_depth()
        self.synthesize_results()


class Encoding(_Pipeline):
    """Replaces `EncodingFlow`."""

    batch_embed = _step(EncodingFlow.batch_embed)
    intra_batch_dedup = _step(EncodingFlow.intra_batch_dedup)
    parallel_find_similar = _step(EncodingFlow.parallel_find_similar)
    parallel_analyze = _step(EncodingFlow.parallel_analyze)
    execute_plans = _step(EncodingFlow.execute_plans)
    _apply_defaults = EncodingFlow._apply_defaults
    _cosine_similarity = staticmethod(EncodingFlow._cosine_similarity)

    def kickoff(self, inputs: dict[str, Any]) -> None:
        self.state = EncodingState(**inputs)
        self.batch_embed()
        self.intra_batch_dedup()
        self.parallel_find_similar()
        self.parallel_analyze()
        self.execute_plans()


class _Tasks:
    """Replaces a pool of threads for suspendable code: asyncio tasks of the run."""

    def __init__(self, run: RunContext) -> None:
        self._run = run
        self._works: list[Work] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Work:
        self._works.append(in_background(self._run, function, *args))
        return self._works[-1]

    def shutdown(self, wait: bool = True) -> None:
        for work in self._works if wait else ():
            work.exception()

    def __enter__(self) -> "_Tasks":
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


def _threads(max_workers: int) -> Any:
    run = current_run()
    return _Tasks(run) if run is not None and is_suspendable() else _own_threads(max_workers)


def _as_completed(futures: Iterable[Future[Any]]) -> Iterator[Future[Any]]:
    works = list(futures)
    # Suspendable code may wait in any order, since each of these waits for the event loop.
    return iter(works) if all(isinstance(w, Work) for w in works) else as_completed(works)


class SaveQueue:
    """Replaces the thread in which a `Memory` saves: in a run, an asyncio task for each save.

    Saves of one memory are in order, as with CrewAI's one thread.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    def submit(self, function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        run = current_run()
        if run is None:
            self._thread = self._thread or _own_threads(1, thread_name_prefix="memory-save")
            return self._thread.submit(function, *args, **options)
        lock = run.save_locks.setdefault(id(self), asyncio.Lock())
        save = in_background(run, lambda: function(*args, **options), lock=lock)
        run.saves.add(save)
        save.add_done_callback(run.saves.discard)
        return save

    def shutdown(self, wait: bool = True) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait)


def _post_init(self: Memory, context: Any) -> None:
    _own_init(self, context)
    self._storage = off_loop(self._storage)


def _drain_writes(self: Memory) -> None:
    """Wait for the saves of this memory, and of all others in the run before a search.

    Agents with memories of their own share a storage: without this, it would be a matter of chance
    whether one finds what another has saved.
    """
    _own_drain_writes(self)
    if (run := current_run()) is not None:
        for save in list(run.saves):
            save.exception()
        if isinstance(self._storage, StorageOfRuns):
            self._storage.see_all()


def _drain_memory_writes(self: Crew) -> None:
    """Wait for the saves of the crew's memories, unless its run is being cancelled."""
    run = current_run()
    if run is not None and is_suspendable():
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            run.cancel_background()
    _own_drain(self)


INSTRUMENTED: tuple[tuple[Any, str, Any], ...] = (
    (factory, "_factory", StorageOfRuns),  # as set_memory_storage_factory sets it
    (recall_flow, "RecallFlow", Recall),
    (recall_flow, "ThreadPoolExecutor", _threads),
    (recall_flow, "as_completed", _as_completed),
    (encoding_flow, "EncodingFlow", Encoding),
    (encoding_flow, "ThreadPoolExecutor", _threads),
    (Memory, "model_post_init", _post_init),
    (Memory, "drain_writes", _drain_writes),
    (Crew, "_drain_memory_writes", _drain_memory_writes),
    (Memory.__private_attributes__["_save_pool"], "default_factory", SaveQueue),
)
