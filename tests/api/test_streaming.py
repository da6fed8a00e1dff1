"""Model tokens, told as they come to whoever watches, and at no cost where nobody does."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

import msgspec
import pytest
from aiohttp import web
from sqlalchemy import func, select

from app.runs.models import RelayedTokens, TokenSubscription
from tests.load.stub_model import StubModel, run_stub
from tests.runs.scripted import until
from tests.serving import Running, Serve


@dataclass
class HeldModel(StubModel):
    """A model that answers when it is let."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self.arrived.set()
        await self.go_on.wait()
        return await super()._complete(request)


REPORTS = {"profile_analysis", "startup_ideas_research", "personalized_recommendations"}


async def _watched(service: Running, run_id: str) -> list[tuple[str, dict[str, Any]]]:
    events = []
    name = ""
    async with service.http.stream("GET", f"/api/runs/{run_id}/events") as response:
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
        run_stub(stub) as url,
        serve(engine=engine, llm_model="openai/stub", llm_base_url=url) as service,
    ):
        body = {"crew": "idea", "stream": True}
        run_id = (await service.http.post("/api/runs", json=body)).json()["run_id"]
        events = await _watched(service, run_id)
        run = (await service.http.get(f"/api/runs/{run_id}")).json()
        texts = dict.fromkeys(REPORTS, "")
        for name, data in events:
            if name == "task.tokens":
                texts[data["name"]] += data["text"]
        assert texts == run["outputs"]
        assert events[-1][0] == "run.succeeded"
        assert all(body["stream"] for body in stub.bodies)
        assert run["usage"]["successful_requests"] == 3


async def test_tokens_are_joined_to_about_five_events_a_second(serve: Serve) -> None:
    stub = StubModel(delay_seconds=1)
    async with (
        run_stub(stub) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        body = {"crew": "idea", "stream": True}
        run_id = (await service.http.post("/api/runs", json=body)).json()["run_id"]
        events = await _watched(service, run_id)
        for report in REPORTS:
            times = [
                datetime.fromisoformat(data["at"])
                for name, data in events
                if name == "task.tokens" and data["name"] == report
            ]
            seconds = (times[-1] - times[0]).total_seconds()
            # The first may come at once, the last with the task's end or another's.
            assert 2 <= len(times) <= seconds * 5 + 3


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_run_is_settled_and_its_model_calls_are_closed(
    serve: Serve, stream: bool
) -> None:
    stub = StubModel(delay_seconds=60)
    async with (
        run_stub(stub) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        body = {"crew": "idea", "stream": stream}
        run_id = (await service.http.post("/api/runs", json=body)).json()["run_id"]

        async def both_called() -> bool:
            return stub.in_flight == 2

        async def all_over() -> bool:
            return stub.aborted == 2 and len(service.inside.worker) == 0

        await until(both_called)
        response = await service.http.post(f"/api/runs/{run_id}/cancel")
        await until(all_over)  # long before the model would respond
        assert response.json()["status"] == "cancelled"
        assert (stub.calls, stub.in_flight) == (2, 0)
        assert await service.stored() == 0


async def test_only_calls_that_begin_with_a_subscriber_are_streamed(serve: Serve) -> None:
    stub = StubModel(delay_seconds=0.5, record=True)
    async with (
        run_stub(stub) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        unwatched = await service.http.post("/api/run", json={})
        assert unwatched.status_code == 200
        assert not any(body.get("stream") for body in stub.bodies)
        stub.bodies.clear()
        response = await service.http.post("/api/runs", json={"crew": "idea"})
        run_id = response.json()["run_id"]

        async def first_calls() -> bool:
            return len(stub.bodies) == 2

        await until(first_calls)
        watching = asyncio.create_task(_watched(service, run_id))

        async def is_watched() -> bool:
            return UUID(run_id) in service.inside.events.subscribed_runs()

        await until(is_watched)
        events = await watching
        assert [bool(body.get("stream")) for body in stub.bodies] == [False, False, True]
        streamed = {data["name"] for name, data in events if name == "task.tokens"}
        assert streamed == {"personalized_recommendations"}


async def _left_behind(service: Running) -> int:
    """What the exchange of tokens between processes keeps."""
    async with service.inside.database.read() as connection:
        counts = [
            await connection.scalar(select(func.count()).select_from(table))
            for table in (TokenSubscription, RelayedTokens)
        ]
    return sum(counts)


async def test_tokens_reach_watchers_in_another_process(serve: Serve, database_url: str) -> None:
    stub = HeldModel(delay_seconds=0.7, record=True)
    async with (
        run_stub(stub) as url,
        serve(database_url=database_url, llm_model="openai/stub", llm_base_url=url) as one,
        serve(database_url=database_url) as other,
    ):
        response = await one.http.post("/api/runs", json={"crew": "idea"})
        run_id = response.json()["run_id"]
        await asyncio.wait_for(stub.arrived.wait(), 20)
        watching = asyncio.create_task(_watched(other, run_id))

        async def is_subscribed() -> bool:
            return UUID(run_id) in one.inside.events.remote_subscribers

        await until(is_subscribed)
        stub.go_on.set()
        events = await watching
        assert [bool(body.get("stream")) for body in stub.bodies] == [False, False, True]
        texts = [data["text"] for name, data in events if name == "task.tokens"]
        run = (await one.http.get(f"/api/runs/{run_id}")).json()
        assert "".join(texts) == run["outputs"]["personalized_recommendations"]
        assert len(texts) > 1
        last_task = [name for name, data in events if data.get("index") == 2]
        assert [name for name, _ in groupby(last_task)] == [
            "task.started",
            "task.tokens",
            "task.finished",
        ]
        assert events[-1][0] == "run.succeeded"

        async def nothing_is_left() -> bool:
            return await _left_behind(other) == 0

        await until(nothing_is_left)


async def test_without_subscribers_nothing_is_relayed(serve: Serve, database_url: str) -> None:
    stub = StubModel(delay_seconds=0.3)
    async with (
        run_stub(stub) as url,
        serve(database_url=database_url, llm_model="openai/stub", llm_base_url=url) as one,
        serve(database_url=database_url) as other,
    ):
        body = {"crew": "idea", "stream": True}
        run_id = (await one.http.post("/api/runs", json=body)).json()["run_id"]
        events = await _watched(one, run_id)
        assert "task.tokens" in {name for name, _ in events}
        assert one.inside.events.remote_subscribers == {}
        assert await _left_behind(other) == 0
