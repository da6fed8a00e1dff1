"""The embedder on the model server: runs that embed at the same time share its requests."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from openai import BadRequestError

from app.engine.llm.embeddings import ServerEmbedder


class _Server:
    """Embeds a text as its number; `released` holds responses back."""

    base_url = "http://server"

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.arrived: asyncio.Queue[None] = asyncio.Queue()
        self.released = asyncio.Event()
        self.released.set()
        self.lost = 0
        self.embeddings = self

    def _get_async_client(self) -> "_Server":
        return self

    async def create(self, *, input: list[str], **options: Any) -> Any:  # noqa: A002
        self.requests.append(input)
        self.arrived.put_nowait(None)
        await self.released.wait()
        if "refused" in input:
            response = httpx.Response(400, request=httpx.Request("POST", self.base_url))
            raise BadRequestError("no", response=response, body=None)
        vectors = enumerate(input[: len(input) - self.lost])
        data = [SimpleNamespace(index=i, embedding=[float(text)]) for i, text in vectors]
        return SimpleNamespace(data=data[::-1])


async def _embedded(embedder: ServerEmbedder, *texts: str) -> list[float]:
    return [float(vector[0]) for vector in await embedder.embed(texts)]


async def test_runs_that_embed_at_the_same_time_share_requests_and_get_their_own() -> None:
    embedder = ServerEmbedder("model", server := _Server())
    groups: Sequence[Sequence[int]] = [range(n * 10, n * 10 + n % 4) for n in range(100)]
    answers = await asyncio.gather(*(_embedded(embedder, *map(str, group)) for group in groups))
    assert answers == [list(map(float, group)) for group in groups]
    assert max(map(len, server.requests)) <= 32
    assert len(server.requests) <= 6  # of 150 texts


async def test_a_request_on_its_way_holds_up_no_other() -> None:
    embedder = ServerEmbedder("model", server := _Server())
    server.released.clear()
    first = asyncio.create_task(_embedded(embedder, "1"))
    await server.arrived.get()
    second = asyncio.create_task(_embedded(embedder, "2"))
    await server.arrived.get()
    server.released.set()
    assert [await first, await second] == [[1.0], [2.0]]


async def test_a_refused_text_fails_its_own_run_only() -> None:
    embedder = ServerEmbedder("model", server := _Server())
    texts = ("1", "refused", "3")
    answers = await asyncio.gather(
        *(_embedded(embedder, text) for text in texts), return_exceptions=True
    )
    assert answers[::2] == [[1.0], [3.0]]
    assert isinstance(answers[1], BadRequestError)
    assert server.requests == [[*texts], ["1"], ["refused"], ["3"]]


async def test_embeddings_that_a_server_leaves_out_are_never_those_of_another_text() -> None:
    embedder = ServerEmbedder("model", server := _Server())
    server.lost = 1
    with pytest.raises(ValueError, match=r"http://server model returned 1 embeddings of 2"):
        await _embedded(embedder, "1", "2")
    answers = await asyncio.gather(
        _embedded(embedder, "1", "2"), _embedded(embedder, "3", "4"), return_exceptions=True
    )
    assert all(isinstance(answer, ValueError) for answer in answers)


async def test_the_text_of_a_cancelled_run_is_not_embedded() -> None:
    embedder = ServerEmbedder("model", server := _Server())
    cancelled = asyncio.create_task(_embedded(embedder, "1"))
    other = asyncio.create_task(_embedded(embedder, "2"))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert await other == [2.0]
    assert np.concatenate(server.requests).tolist() == ["2"]
