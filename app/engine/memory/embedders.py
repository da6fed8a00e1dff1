"""The embedder of a crew's memories and knowledge: its own, or the deployment's."""

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from crewai.memory import encoding_flow, recall_flow, types, unified_memory
from crewai.rag.embeddings import factory

from app.engine.llm.embeddings import Embedder
from app.engine.runtime.waiting import is_suspendable, offload, wait_for

_own_default_embedder = unified_memory._default_embedder
_own_build_embedder = factory.build_embedder
_own_embed_text = types.embed_text
_own_embed_texts = types.embed_texts


@dataclass(frozen=True, slots=True)
class CrewEmbedder:
    """The embedder of crews without their own; that of all crews if it `replaces` theirs."""

    embedder: Embedder
    replaces: bool = False


_of_service: contextvars.ContextVar[CrewEmbedder | None] = contextvars.ContextVar(
    "crew_capture_embedder", default=None
)


@contextmanager
def embedder_of_service(embedder: CrewEmbedder) -> Iterator[None]:
    """Within this, crews without an embedder of their own get `embedder`.

    CrewAI would build OpenAI's from the environment instead, which requires a key.
    """
    token = _of_service.set(embedder)
    try:
        yield
    finally:
        _of_service.reset(token)


def default_embedder() -> Any:
    """Replaces CrewAI's default embedder of memories."""
    of_service = _of_service.get()
    return _own_default_embedder() if of_service is None else of_service.embedder


def build_embedder(spec: Any) -> Any:
    """Replaces CrewAI's function: the embedder that a crew defines, unless it is replaced."""
    of_service = _of_service.get()
    if of_service is not None and of_service.replaces:
        return of_service.embedder
    return _own_build_embedder(spec)


def embed_text(embedder: Any, text: str) -> list[float]:
    """Replaces CrewAI's function, which would block the event loop."""
    return _off_loop(_own_embed_text, embedder, text)  # type: ignore[no-any-return]


def embed_texts(embedder: Any, texts: list[str]) -> list[list[float]]:
    """Replaces CrewAI's function, which would block the event loop."""
    return _off_loop(_own_embed_texts, embedder, texts)  # type: ignore[no-any-return]


def _off_loop(embed: Any, embedder: Any, given: Any) -> Any:
    if isinstance(embedder, Embedder) and is_suspendable():
        return embed(lambda texts: wait_for(embedder.embed(texts)), given)
    return offload(embed, embedder, given)


INSTRUMENTED: tuple[tuple[Any, str, Any], ...] = (
    (unified_memory, "_default_embedder", default_embedder),
    (unified_memory, "embed_text", embed_text),
    (recall_flow, "embed_texts", embed_texts),
    (encoding_flow, "embed_texts", embed_texts),
    # In the modules that have imported it, and for those that import it when they need it.
    (unified_memory, "build_embedder", build_embedder),
    (factory, "build_embedder", build_embedder),
)
