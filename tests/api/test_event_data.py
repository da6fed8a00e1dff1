"""The events of runs have the data that the OpenAPI description says they have."""

from typing import Any

import msgspec

from app.api.events import EVENTS
from app.runs import EventType
from tests.api.crews import LETTER, Letters
from tests.load.stub_model import StubModel, run_stub
from tests.serving import Running, Serve


async def _received(service: Running, run_id: str, *, until_type: str = "") -> set[str]:
    """The types of a run's events, whose data conforms to the description."""
    types: set[str] = set()
    async with service.http.stream("GET", f"/api/runs/{run_id}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                data = line.removeprefix("data: ")
                described = EVENTS[EventType(name)]
                msgspec.json.decode(data, type=described)
                assert set(msgspec.json.decode(data)) <= set(described.__struct_fields__)
                types.add(name)
                if name == until_type:
                    break
    return types


async def _submit(service: Running, body: dict[str, Any]) -> str:
    return str((await service.http.post("/api/runs", json=body)).json()["run_id"])


async def test_the_events_of_reviewed_and_cancelled_runs_have_their_schemas(
    serve: Serve, letters: Letters
) -> None:
    async with serve(letters.crews) as service:
        run_id = await _submit(service, {"crew": "letter", "inputs": LETTER})
        await _received(service, run_id, until_type="run.awaiting_human")
        run = (await service.http.get(f"/api/runs/{run_id}")).json()
        review = {"task": run["awaiting"]["task"], "approve": True}
        await service.http.post(f"/api/runs/{run_id}/resume", json=review)
        assert await _received(service, run_id) == {
            "run.queued",
            "run.running",
            "task.started",
            "task.finished",
            "run.awaiting_human",
            "run.resumed",
            "run.succeeded",
        }

        run_id = await _submit(service, {"crew": "letter", "inputs": LETTER})
        await _received(service, run_id, until_type="run.awaiting_human")
        await service.http.post(f"/api/runs/{run_id}/cancel")
        assert "run.cancelled" in await _received(service, run_id)


async def test_tokens_have_their_schema(serve: Serve) -> None:
    async with (
        run_stub(StubModel(delay_seconds=0.05)) as url,
        serve(llm_model="openai/stub", llm_base_url=url) as service,
    ):
        run_id = await _submit(service, {"crew": "idea", "stream": True})
        assert "task.tokens" in await _received(service, run_id)


def test_every_type_of_event_has_a_schema() -> None:
    assert set(EVENTS) == set(EventType)
