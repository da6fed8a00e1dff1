"""The crews in examples/, served over a scripted model server, by each way that they can go."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.crews.registry import load_crews
from app.settings import load_settings
from examples.meeting_notes.crew import date_of_weekday
from tests.examples.models import secretary
from tests.load.stub_model import Body, StubModel, run_stub
from tests.serving import Running, Serve

CREWS = "notes=examples.meeting_notes:build,support=examples.support_triage:build"


@asynccontextmanager
async def serving(
    serve: Serve, respond: Callable[[Body], Body | None], engine: str
) -> AsyncIterator[tuple[Running, StubModel]]:
    stub = StubModel(delay_seconds=0, record=True, respond=respond)
    async with run_stub(stub) as base_url:
        settings: dict[str, Any] = {
            "engine": engine,
            "llm_model": "gpt-4o-mini",
            "llm_base_url": base_url,
        }
        crews = load_crews(load_settings(crews=CREWS))
        async with serve(crews, **settings) as service:
            yield service, stub


async def run(service: Running, crew: str, inputs: dict[str, str]) -> dict[str, Any]:
    started = await service.http.post("/api/runs", json={"crew": crew, "inputs": inputs})
    assert started.status_code == 202, started.text
    async with service.http.stream("GET", f"{started.headers['Location']}/events") as events:
        async for _ in events.aiter_lines():
            pass  # it ends with the run
    ended: dict[str, Any] = (await service.http.get(started.headers["Location"])).json()
    assert ended["status"] == "succeeded", ended
    return ended


@pytest.mark.parametrize(
    ("weekday", "date"),
    [("Thursday", "2026-03-05"), ("monday", "2026-03-09"), (" Sunday ", "2026-03-08")],
)
def test_the_tool_finds_the_next_such_weekday(weekday: str, date: str) -> None:
    assert date_of_weekday.run(meeting_date="2026-03-02", weekday=weekday) == date


def test_the_tool_says_what_is_no_weekday() -> None:
    assert "is no weekday" in date_of_weekday.run(meeting_date="2026-03-02", weekday="soon")


@pytest.mark.parametrize("engine", ["auto", "stock"])
async def test_notes_become_dated_action_items_and_minutes(serve: Serve, engine: str) -> None:
    async with serving(serve, secretary, engine) as (service, stub):
        ended = await run(
            service, "notes", {"meeting_date": "2026-03-02", "notes": "Ada: offer by Thursday"}
        )
    item = {"what": "send the offer", "who": "Ada", "due": "2026-03-05"}
    assert json.loads(ended["outputs"]["actions"]) == {"items": [item]}
    assert ended["outputs"]["minutes"].startswith("# Minutes")
    assert stub.bodies[0]["tools"][0]["function"]["name"] == "date_of_weekday"


@pytest.mark.parametrize("engine", ["auto", "stock"])
@pytest.mark.parametrize("level", ["urgent", "normal"])
async def test_only_urgent_messages_get_a_note_for_the_engineer(
    serve: Serve, engine: str, level: str
) -> None:
    triages = iter(["I'd say it depends.", f"{level}: as they write"])

    def respond(body: Body) -> Body:
        prompt = str(body["messages"])
        if "How urgent is this message?" in prompt:
            text = next(triages)
        else:
            text = "look at it" if "Tell the engineer" in prompt else "Dear customer"
        return {"role": "assistant", "content": f"Final Answer: {text}"}

    async with serving(serve, respond, engine) as (service, stub):
        ended = await run(service, "support", {"product": "the shop", "message": "I can't pay"})
    # The guardrail refused the first triage, which was then done again.
    assert ended["outputs"]["triage"] == f"{level}: as they write"
    assert next(triages, None) is None
    assert ended["outputs"]["note_for_engineer"] == ("look at it" if level == "urgent" else "")
    statuses = {task["name"]: task["status"] for task in ended["tasks"]}
    assert statuses["note_for_engineer"] == ("finished" if level == "urgent" else "skipped")
    assert ended["outputs"]["reply"] == "Dear customer"
    assert len(stub.bodies) == (4 if level == "urgent" else 3)
