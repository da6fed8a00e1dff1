"""Shared limits of models over services on one database, refusals, and a second model."""

from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from app.crews.registry import Registry
from app.engine.llm import close_models
from app.model_setup import configured_model
from app.runs.models import ModelPermitRow
from app.settings import SettingsError
from tests.load.stub_model import Failure, StubModel, run_stub
from tests.runs.scripted import until
from tests.serving import MakeSettings, Serve


async def test_two_services_share_the_limits_of_a_model(serve: Serve) -> None:
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(run_stub(StubModel(delay_seconds=0.0)))
        model = {"llm_model": "openai/stub", "llm_base_url": url, "llm_api_key": "none"}
        limits = {"llm_requests_per_minute": 600, "llm_tokens_per_minute": 10**9}
        one, two = [await stack.enter_async_context(serve(**model, **limits)) for _ in range(2)]
        begun = one.inside.database.clock.now().timestamp()
        for service in (one, two) * 2:
            response = await service.http.post("/api/runs", json={"crew": "idea"})
            assert response.status_code == 202
        await until(one.all_settled, 30)
        for run in await one.rows():
            assert run.status == "succeeded"
            calls = (await two.http.get(f"/api/runs/{run.run_id}/calls")).json()["calls"]
            assert all(call["waited_seconds"] > 0 for call in calls)
        async with one.inside.database.read() as connection:
            (spent_until,) = await connection.scalars(select(ModelPermitRow.requests_until))
        assert spent_until >= begun + 12 * 60 / 540  # twelve calls, in one row
        await close_models()


async def test_a_refusal_pauses_the_model(serve: Serve) -> None:
    async with AsyncExitStack() as stack:
        refusal = Failure(status=429, headers={"retry-after": "0.4"})
        stub = StubModel(delay_seconds=0.0, failures={1: refusal})
        url = await stack.enter_async_context(run_stub(stub))
        model = {"llm_model": "openai/stub", "llm_base_url": url, "llm_api_key": "none"}
        service = await stack.enter_async_context(serve(**model, llm_requests_per_minute=6000))
        run = (await service.http.post("/api/runs?wait=30", json={"crew": "idea"})).json()
        assert run["status"] == "succeeded"
        async with service.inside.database.read() as connection:
            (paused_until,) = await connection.scalars(select(ModelPermitRow.paused_until))
        assert paused_until > datetime.fromisoformat(run["started_at"]).timestamp()
        await close_models()


async def test_a_fallback_answers_and_is_recorded(serve: Serve, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        failure = Failure(status=500, headers={"retry-after": "0"})
        stub = StubModel(delay_seconds=0.0, failures=dict.fromkeys(range(1, 7), failure))
        url = await stack.enter_async_context(run_stub(stub))
        model = {"llm_model": "openai/one", "llm_base_url": url, "llm_api_key": "none"}
        prices = tmp_path / "prices.toml"
        prices.write_text("[one]\ninput = 1\noutput = 1\n")
        service = await stack.enter_async_context(
            serve(**model, model_fallback="openai/two", prices_file=prices)
        )
        run = (await service.http.post("/api/runs?wait=30", json={"crew": "idea"})).json()
        assert run["status"] == "succeeded"
        calls = (await service.http.get(f"/api/runs/{run['run_id']}/calls")).json()["calls"]
        names = [(call["model"], call["error_type"]) for call in calls]
        # Its first two tasks run at once.
        assert names == [("openai/two", None), ("openai/two", None), ("openai/one", None)]
        assert all(call["tokens"]["output"] for call in calls)
        assert "openai/two" in run["tasks"][0]["models"]
        assert run["tasks"][2]["models"] == ["openai/one"]
        budget = {"crew": "idea", "max_cost": 1}
        refused = await service.http.post("/api/runs", json=budget)
        assert refused.status_code == 400
        assert "calls the model openai/two, which has no price" in refused.json()["error"]
        await close_models()


def test_a_fallback_that_cannot_be_built_is_one_line(settings: MakeSettings) -> None:
    wrong = settings(llm_model="openai/one", llm_api_key="none", model_fallback="opnai/two")
    with pytest.raises(SettingsError, match="MODEL_FALLBACK=opnai/two: no provider is named opnai"):
        configured_model(wrong, Registry([]))
