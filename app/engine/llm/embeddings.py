"""The deployment's embedder: a model on the model server, or a local one without a network."""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Vector = NDArray[np.float32]

_DIMENSIONS: Final = 512
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


class ServerEmbedder(Embedder):
    """Embeds with a model of an OpenAI-compatible server, over a model's connections."""

    def __init__(self, model: str, server: Any) -> None:
        """`server` is a pooled model: its address, key and limits apply."""
        self.name = f"{server.base_url or server.provider} {model}"
        self._model = model
        self._server = server

    @override
    async def embed(self, texts: Sequence[str]) -> list[Vector]:
        client = self._server._get_async_client()
        return _vectors(await client.embeddings.create(**self._request(texts)))

    @override
    def __call__(self, texts: Sequence[str]) -> list[Vector]:
        client = self._server._get_sync_client()
        return _vectors(client.embeddings.create(**self._request(texts)))

    def _request(self, texts: Sequence[str]) -> dict[str, Any]:
        # Not base64, which the SDK requests by default and not every server knows.
        return {"model": self._model, "input": list(texts), "encoding_format": "float"}


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
