"""Model tokens, told as they come to whoever watches, and at no cost where nobody does."""

import asyncio
from typing import Any
from uuid import UUID

import msgspec
import pytest

from tests.load.stub_model import StubModel
from tests.load.stub_model import served as served_stub
from tests.runs.scripted import until
from tests.serving import Serve, Served

REPORTS = {"profile_analysis", "startup_ideas_research", "personalized_recommendations"}


async def _watched(served: Served, run_id: str) -> list[tuple[str, dict[str, Any]]]:
    events = []
    name = ""
    async with served.http.stream("GET", f"/api/runs/{run_id}/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, msgspec.json.decode(line.removeprefix("data: "))))
    return events


@pytest.mark.parametrize("engine", ["auto", "native"])
async def test_the_tokens_of_a_streamed_run_add_up_to_its_outputs(
    serve: Serve, engine: str
) -> None:
    stub = StubModel(delay_seconds=0.3, record=True)
    async with (
        served_stub(stub) as url,
        serve(engine=engine, llm_model="openai/stub", llm_base_url=url) as served,
    ):
        body = {"crew": "idea", "stream": True}
        run_id = (await served.http.post("/api/runs", json=body)).json()["run_id"]
        events = await _watched(served, run_id)
        run = (await served.http.get(f"/api/runs/{run_id}")).json()
        told = dict.fromkeys(REPORTS, "")
        for name, data in events:
            if name == "task.tokens":
                told[data["name"]] += data["text"]
        assert told == run["outputs"]
        assert events[-1][0] == "run.succeeded"
        assert all(body["stream"] for body in stub.bodies)
        assert run["usage"]["successful_requests"] == 3


async def test_only_calls_begun_while_somebody_watches_are_streamed(serve: Serve) -> None:
    stub = StubModel(delay_seconds=0.5, record=True)
    async with (
        served_stub(stub) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as served,
    ):
        unwatched = await served.http.post("/api/run", json={})
        assert unwatched.status_code == 200
        assert not any(body.get("stream") for body in stub.bodies)
        stub.bodies.clear()
        response = await served.http.post("/api/runs", json={"crew": "idea"})
        run_id = response.json()["run_id"]

        async def first_calls() -> bool:
            return len(stub.bodies) == 2

        await until(first_calls)
        watching = asyncio.create_task(_watched(served, run_id))

        async def is_watched() -> bool:
            return UUID(run_id) in served.inside.events.watched()

        await until(is_watched)
        events = await watching
        assert [bool(body.get("stream")) for body in stub.bodies] == [False, False, True]
        streamed = {data["name"] for name, data in events if name == "task.tokens"}
        assert streamed == {"personalized_recommendations"}
