"""The deployment's embedder: a model on the model server, or a local one without a network."""

from __future__ import annotations

import asyncio
import re
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from openai import APIStatusError
from typing_extensions import override

Vector = NDArray[np.float32]

_DIMENSIONS: Final = 512
# Of one request to a model server. Some servers refuse more texts than this.
_MAX_TEXTS: Final = 32
_MAX_CHARACTERS: Final = 100_000
_MAX_REQUESTS: Final = 4
_TOKEN = re.compile(r"\w+")
# Parts of words find related words, but weigh less than whole ones.
_PART_LENGTH, _PART_WEIGHT, _PAIR_WEIGHT = 4, 0.4, 0.6


class Embedder(ABC):
    """Embeds texts, for memories and knowledge. CrewAI calls it as an embedding function.

    Embedders of the same name return the same embeddings.
    """

    name: str

    @abstractmethod
    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        """The embeddings of `texts`, on the event loop."""

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> list[Vector]:
        """The embeddings of `texts`, in a thread."""


class HashEmbedder(Embedder):
    """Embeds words by their hashes: equal and similar words match, synonyms do not.

    It needs no model, network or state. The embeddings are of unit length.
    """

    name = "hash"

    @override
    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        return self(texts)

    @override
    def __call__(self, texts: Sequence[str]) -> list[Vector]:
        return [_hashed(text) for text in texts]


@dataclass(slots=True)
class _Pending:
    """Texts that wait for their embeddings."""

    texts: Sequence[str]
    vectors: asyncio.Future[list[Vector]]


class ServerEmbedder(Embedder):
    """Embeds with a model of an OpenAI-compatible server, over a model's connections.

    While `_MAX_REQUESTS` requests are on their way, the texts of further callers join in the next.
    A request that the server refuses is repeated for each caller alone.
    """

    def __init__(self, model: str, server: Any) -> None:
        """`server` is a pooled model: its address, key and limits apply."""
        self.name = f"{server.base_url or server.provider} {model}"
        self._model = model
        self._server = server
        self._waiting: deque[_Pending] = deque()
        self._requests: set[asyncio.Task[None]] = set()

    @override
    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        pending = _Pending(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(pending)
        self._begin()
        return await pending.vectors

    @override
    def __call__(self, texts: Sequence[str]) -> list[Vector]:
        client = self._server._get_sync_client()
        return _vectors(client.embeddings.create(**self._request(texts)))

    def _begin(self) -> None:
        if self._waiting and len(self._requests) < _MAX_REQUESTS:
            # It embeds for other callers, too: it has no context of one.
            request = asyncio.create_task(self._send(), context=Context())
            self._requests.add(request)
            request.add_done_callback(self._end)

    def _end(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        self._begin()

    async def _send(self) -> None:
        await asyncio.sleep(0)  # callers that are ready in this turn of the loop join
        group = self._next_group()
        try:
            vectors = iter(await self._fetch([text for one in group for text in one.texts]))
        except (APIStatusError, ValueError) as error:
            if len(group) == 1:
                _fail(group, error)
            else:
                await asyncio.gather(*map(self._send_alone, group))
        except Exception as error:  # raised to the callers
            _fail(group, error)
        else:
            for one in group:
                _resolve(one, list(islice(vectors, len(one.texts))))

    async def _send_alone(self, one: _Pending) -> None:
        try:
            _resolve(one, await self._fetch(one.texts))
        except Exception as error:  # raised to the caller
            _fail([one], error)

    def _next_group(self) -> list[_Pending]:
        """The callers of the next request: one, and more as long as their texts fit in."""
        group: list[_Pending] = []
        texts = characters = 0
        while self._waiting:
            one = self._waiting[0]
            texts += len(one.texts)
            characters += sum(map(len, one.texts))
            if group and (texts > _MAX_TEXTS or characters > _MAX_CHARACTERS):
                break
            self._waiting.popleft()
            if not one.vectors.done():  # else its run was cancelled
                group.append(one)
        return group

    async def _fetch(self, texts: Sequence[str]) -> list[Vector]:
        if not texts:
            return []
        client = self._server._get_async_client()
        vectors = _vectors(await client.embeddings.create(**self._request(texts)))
        if len(vectors) != len(texts):
            raise ValueError(f"{self.name} returned {len(vectors)} embeddings of {len(texts)}")
        return vectors

    def _request(self, texts: Sequence[str]) -> dict[str, Any]:
        # Not base64, which the SDK requests by default and not every server knows.
        return {"model": self._model, "input": list(texts), "encoding_format": "float"}


def _resolve(one: _Pending, vectors: list[Vector]) -> None:
    if not one.vectors.done():
        one.vectors.set_result(vectors)


def _fail(group: Sequence[_Pending], error: Exception) -> None:
    for one in group:
        if not one.vectors.done():
            one.vectors.set_exception(error)


def _vectors(response: Any) -> list[Vector]:
    ordered = sorted(response.data, key=lambda item: item.index)
    return [np.asarray(item.embedding, np.float32) for item in ordered]


def _hashed(text: str) -> Vector:
    vector = np.zeros(_DIMENSIONS, np.float32)
    words = [word.lower() for word in _TOKEN.findall(text)]
    for word in words:
        _add(vector, word, 1.0)
        padded = f"<{word}>"
        for start in range(len(padded) - _PART_LENGTH + 1):
            _add(vector, padded[start : start + _PART_LENGTH], _PART_WEIGHT)
    for first, second in pairwise(words):
        _add(vector, f"{first} {second}", _PAIR_WEIGHT)
    length = float(np.linalg.norm(vector))
    if length == 0:
        vector[0] = length = 1.0  # a text without words, which must not equal every other
    return vector / np.float32(length)


def _add(vector: Vector, feature: str, weight: float) -> None:
    hashed = zlib.crc32(feature.encode())
    # The sign makes collisions cancel out on average.
    vector[hashed % _DIMENSIONS] += weight if hashed & 0x80000000 else -weight
