"""Memories and knowledge with a recording model: embedders, analyses, comparable calls."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction
from crewai.rag.chromadb import config as chroma_config
from crewai.rag.embeddings.providers.custom.embedding_callable import CustomEmbeddingFunction

from app.engine.llm.embeddings import HashEmbedder
from tests.engine.recording import Request, hashed

EMBEDDER = HashEmbedder()
_RECALLED = re.compile(r"\s+# Memories from past conversations:.*?a final count\.", re.DOTALL)
_RANDOM = re.compile(r"id=[0-9a-f-]{36}|created=[0-9T:.-]+")


def analysis(request: Request, nth: int) -> Any:
    """Answers each kind of a memory's analyses with JSON that depends on the request."""
    system = str(request.messages[0]["content"])
    if request.task:
        return hashed(request, nth)
    if "extract discrete" in system:
        return json.dumps({"memories": [f"fact {digest_of(request)} on tea", "tea is green"]})
    if "Existing scopes" in request.last:
        found = {"suggested_scope": f"/notes/{digest_of(request)[:1]}", "categories": ["tea"]}
        return json.dumps({**found, "importance": 0.7, "extracted_metadata": {}})
    if "EXISTING" in request.last.upper():
        return json.dumps({"actions": [], "insert_new": True, "insert_reason": "new"})
    # One query: of two that find a memory, CrewAI shows the score of whichever ends first.
    queries = [f"green tea {digest_of(request)}"]
    return json.dumps({"keywords": [], "recall_queries": queries, "complexity": "complex"})


def comparable(
    calls: Mapping[tuple[str, str], list[Request]],
) -> dict[tuple[str, str], list[str]]:
    """All that the model was sent. The analyses of a memory are concurrent: in any order."""
    sent = {
        key: [_RANDOM.sub("", json.dumps(vars(call), default=str, sort_keys=True)) for call in made]
        for key, made in calls.items()
    }
    return {key: made if key[0] else sorted(made) for key, made in sent.items()}


def digest_of(request: Request) -> str:
    """A digest of the messages without random parts."""
    return hashlib.sha256(
        _RANDOM.sub("", json.dumps(request.messages, sort_keys=True)).encode()
    ).hexdigest()[:12]


class _Embedding(CustomEmbeddingFunction, EmbeddingFunction[Documents]):
    """The embedder of knowledge, as CrewAI requires it."""

    def __init__(self) -> None: ...

    def __call__(self, input: Any) -> Any:  # noqa: A002 - CrewAI's name
        return [np.asarray(vector, np.float32) for vector in EMBEDDER(list(input))]


# The options of a crew or an agent with knowledge.
EMBEDDED = {"embedder": {"provider": "custom", "config": {"embedding_callable": _Embedding}}}


@contextmanager
def own_storages() -> Iterator[None]:
    """Within this, stock's memories and knowledge begin empty."""
    before = os.environ.get("CREWAI_STORAGE_DIR"), chroma_config.DEFAULT_STORAGE_PATH
    with tempfile.TemporaryDirectory(prefix="crew-capture-mixed-") as name:
        os.environ["CREWAI_STORAGE_DIR"] = str(Path(name) / "crewai")
        chroma_config.DEFAULT_STORAGE_PATH = str(Path(name) / "chroma")
        try:
            yield
        finally:
            chroma_config.DEFAULT_STORAGE_PATH = before[1]
            if before[0] is None:
                del os.environ["CREWAI_STORAGE_DIR"]
            else:
                os.environ["CREWAI_STORAGE_DIR"] = before[0]


def without_recalled(request: Request) -> Request:
    """The same request without the memories that CrewAI adds to prompts."""
    messages = [
        {**message, "content": _RECALLED.sub("", str(message["content"] or ""))}
        for message in request.messages
    ]
    return replace(request, messages=messages)
