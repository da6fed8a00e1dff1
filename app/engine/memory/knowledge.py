"""CrewAI's knowledge: each text is embedded once per process, not once for each run.

CrewAI keeps one collection for all crews of a machine on disk, and embeds all sources whenever a
crew is built. Here a collection belongs to the crew object of a run, so runs and crews never see
each other's sources. The embeddings are shared, by a hash of the embedder and the text.
"""

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import numpy as np
from crewai import Agent
from crewai.knowledge.knowledge import Knowledge
from crewai.knowledge.storage import factory
from crewai.knowledge.storage.base_knowledge_storage import BaseKnowledgeStorage
from crewai.rag.types import SearchResult
from numpy.typing import NDArray
from pydantic import BaseModel, PrivateAttr

from app.engine.llm.embeddings import Embedder
from app.engine.memory.embedders import build_embedder, default_embedder, embed_texts
from app.engine.runtime.waiting import offload, suspendable

_logger = logging.getLogger(__name__)

_own_set_knowledge = Agent.set_knowledge
_own_add_sources = Knowledge.add_sources

_MAX_EMBEDDINGS: Final = 20_000
_BATCH: Final = 100  # as CrewAI's

Vector = NDArray[np.float32]


class KnowledgeOfCrew(BaseKnowledgeStorage):
    """The texts of one knowledge collection, with exact search."""

    _embedder: Any = PrivateAttr()
    _identity: str = PrivateAttr()
    _texts: dict[str, Vector] = PrivateAttr(default_factory=dict)

    def __init__(self, embedder: Any, collection_name: str | None = None) -> None:
        """CrewAI's storage factory: `embedder` is the crew's definition of one, if it has any."""
        super().__init__()
        self._embedder = build_embedder(embedder) if embedder else default_embedder()
        is_own = not isinstance(self._embedder, Embedder)
        self._identity = _identity(embedder) if is_own else self._embedder.name

    def save(self, documents: list[str]) -> None:
        new = [text for text in dict.fromkeys(documents) if text not in self._texts]
        for first in range(0, len(new), _BATCH):
            batch = new[first : first + _BATCH]
            self._texts.update(_embeddings.get(self._embedder, self._identity, batch))

    def search(
        self,
        query: list[str],
        limit: int = 5,
        metadata_filter: dict[str, Any] | None = None,
        score_threshold: float = 0.6,
    ) -> list[SearchResult]:
        """The nearest texts. A failure yields no texts, as in CrewAI."""
        try:
            return self._search(" ".join(query), limit, metadata_filter, score_threshold)
        except Exception as error:
            _logger.warning("a knowledge search failed: %s", type(error).__name__)
            return []

    def reset(self) -> None:
        self._texts.clear()

    async def asave(self, documents: list[str]) -> None:
        await suspendable(_called(self.save, documents))

    async def asearch(self, *args: Any, **options: Any) -> list[SearchResult]:
        return await suspendable(_called(self.search, *args, **options))

    async def areset(self) -> None:
        self.reset()

    def _search(
        self, query: str, limit: int, metadata_filter: Any, score_threshold: float | None
    ) -> list[SearchResult]:
        embed_query = getattr(self._embedder, "embed_query", self._embedder)
        query_vector = _unit(np.asarray(embed_texts(embed_query, [query]), np.float32))
        texts = list(self._texts)
        if not texts or metadata_filter:  # no text has metadata
            return []
        # CrewAI's score of a cosine distance d is 1 - d/2.
        scores = 0.5 + 0.5 * (_unit(np.stack(list(self._texts.values()))) @ query_vector[0])
        nearest = np.argsort(-scores, kind="stable")[:limit]
        return [
            {
                "id": hashlib.sha256(texts[i].encode()).hexdigest(),
                "content": texts[i],
                "metadata": {},
                "score": float(np.clip(scores[i], 0, 1)),
            }
            for i in nearest
            if not score_threshold or scores[i] >= score_threshold
        ]


class _Embeddings:
    """The embeddings of this process by embedder and text, the most recently used."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, embedder: Any, identity: str, texts: Sequence[str]) -> dict[str, Vector]:
        keys = {text: hashlib.sha256(f"{identity}\n{text}".encode()).digest() for text in texts}
        with self._lock:
            found = {text: self._known[key] for text, key in keys.items() if key in self._known}
        missing = [text for text in texts if text not in found]
        if missing:
            embedded = embed_texts(embedder, missing)
            pairs = zip(missing, embedded, strict=True)
            found.update((text, np.asarray(v, np.float32)) for text, v in pairs if v)
        with self._lock:
            for text, vector in found.items():
                self._known[keys[text]] = vector
                self._known.move_to_end(keys[text])
            while len(self._known) > _MAX_EMBEDDINGS:
                self._known.popitem(last=False)
        return {text: found[text] for text in texts if text in found}


_embeddings = _Embeddings()


async def _called(function: Any, *args: Any, **options: Any) -> Any:
    return function(*args, **options)


def _unit(vectors: Vector) -> Vector:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Vector = vectors / np.maximum(lengths, np.float32(1e-30))
    return unit


def _identity(value: Any) -> str:
    """A text that is equal for equal definitions of an embedder, also in other objects."""
    if isinstance(value, dict):
        return repr(sorted((str(key), _identity(item)) for key, item in value.items()))
    if isinstance(value, str | int | float | bool | None):
        return repr(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, BaseModel):
        return _identity(type(value)) + _identity(dict(value))
    return uuid4().hex  # nothing is known of any other object


def _set_knowledge(self: Agent, *args: Any, **options: Any) -> None:
    """Read and embed the sources of an agent in a thread: CrewAI does it on the event loop."""
    if not self.knowledge_sources:
        return _own_set_knowledge(self, *args, **options)
    return offload(lambda: _own_set_knowledge(self, *args, **options))


def _add_sources(self: Knowledge) -> None:
    """Add copies of the sources: crews share those that are built at module level."""
    self.sources = [source.model_copy(update={"chunks": []}) for source in self.sources]
    _own_add_sources(self)


INSTRUMENTED: tuple[tuple[Any, str, Any], ...] = (
    (factory, "_factory", KnowledgeOfCrew),  # as set_knowledge_storage_factory sets it
    (Agent, "set_knowledge", _set_knowledge),
    (Knowledge, "add_sources", _add_sources),
)
