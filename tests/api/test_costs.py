"""Costs, budgets that end runs, and the usage of keys."""

import asyncio
import csv
import io
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from crewai import Agent, Crew, Task
from crewai.flow.flow import Flow, start
from crewai.tools import tool
from sqlalchemy import select

from app.access.api_keys import ApiKeys, Role
from app.crews.options import CrewOptions
from app.crews.registry import CrewSpec, Registry
from app.prices import nanos
from app.runs.execution.spending import Accounts
from app.runs.models import CallerUsage
from tests.commands import ForkServer
from tests.faults.deployment import Servers, Site, deployed
from tests.load.stub_model import Body, Failure, StubModel, run_stub
from tests.runs.scripted import until
from tests.serving import Running, Serve

# In USD for a million tokens: a token costs 1,000 and 2,000 nano-dollars.
PRICES = """
["openai/stub"]
input = 1
output = 2
"""


@tool
def look_up(word: str = "") -> str:
    """Looks a word up."""
    return f"nothing on {word}"


def _agent(**options: Any) -> Agent:
    return Agent(role="Worker", goal="Work", backstory="A worker", **options)


def _tasks(agent: Agent, count: int) -> list[Task]:
    return [
        Task(name=f"task_{n}", description=f"Do {n}", expected_output="A text", agent=agent)
        for n in range(count)
    ]


def _twelve() -> Crew:
    agent = _agent()
    return Crew(agents=[agent], tasks=_tasks(agent, 12))


def _two() -> Crew:
    agent = _agent()
    return Crew(agents=[agent], tasks=_tasks(agent, 2))


def _loop() -> Crew:
    """Its model requests a tool in every answer."""
    agent = _agent(tools=[look_up], max_iter=200)
    return Crew(agents=[agent], tasks=_tasks(agent, 1))


class _EndlessFlow(Flow[Any]):
    @start()
    def begin(self) -> str:
        while True:
            _two().kickoff()


def _registry(**options: Any) -> Registry:
    builds: dict[str, Callable[[], Any]] = {
        "twelve": _twelve,
        "two": _two,
        "loop": _loop,
        "flow": _EndlessFlow,
    }
    return Registry(
        CrewSpec(name, build, options=CrewOptions(**options)) for name, build in builds.items()
    )


def _always_use_a_tool(body: Body) -> Body | None:
    tools = body.get("tools")
    if not tools:
        return None
    # Other arguments each time: CrewAI answers a repeated call from its cache.
    arguments = f'{{"word": "word {len(body["messages"])}"}}'
    function = {"name": tools[0]["function"]["name"], "arguments": arguments}
    call = {"id": "call_1", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


class _Model(StubModel):
    """Adds up the tokens that it reports."""

    def __init__(self, **options: Any) -> None:
        super().__init__(delay_seconds=0, respond=_always_use_a_tool, **options)
        self.input_tokens = 0
        self.output_tokens = 0

    def _completion(self, body: Body, text: str) -> Body:
        completion = super()._completion(body, text)
        self.input_tokens += completion["usage"]["prompt_tokens"]
        self.output_tokens += completion["usage"]["completion_tokens"]
        return completion

    @property
    def cost(self) -> float:
        return (self.input_tokens * 1000 + self.output_tokens * 2000) / 1e9

    def forget(self) -> None:
        self.reset()
        self.input_tokens = self.output_tokens = 0


@pytest.fixture
async def model() -> AsyncIterator[tuple[_Model, str]]:
    model = _Model()
    async with run_stub(model) as base_url:
        yield model, base_url


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    return file


def _settings(base_url: str, prices: Path | None = None, **more: Any) -> dict[str, Any]:
    return {"llm_model": "openai/stub", "llm_base_url": base_url, "prices_file": prices, **more}


async def _run(service: Running, crew: str, key: str = "", **fields: Any) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = await service.http.post(
        "/api/runs?wait=30", json={"crew": crew, **fields}, headers=headers
    )
    assert answer.status_code == 200, answer.text
    run: dict[str, Any] = answer.json()
    return run


def _was_ended(run: dict[str, Any], budget: str) -> None:
    assert (run["status"], run["error_type"]) == ("failed", "budget_exceeded"), run
    assert budget in run["error"]


@pytest.mark.parametrize("engine", ["auto", "native", "stock"])
async def test_a_run_ends_after_the_last_call_of_its_budget(
    serve: Serve, model: tuple[_Model, str], engine: str
) -> None:
    """A plan with more tasks, and crews and a flow that would never end."""
    stub, base_url = model
    async with serve(_registry(), **_settings(base_url, engine=engine)) as service:
        for crew, outputs in (("twelve", 10), ("loop", 0), ("flow", 2)):
            stub.forget()
            run = await _run(service, crew, max_model_calls=10)
            _was_ended(run, "the run's budget of 10 model calls is used up (max_model_calls=10)")
            assert stub.calls == 10
            assert run["usage"]["model_calls"] == 10
            assert run["usage"]["prompt_tokens"] == stub.input_tokens
            assert run["usage"]["unpriced_calls"] == 10
            assert run["cost"] is None
            if crew != "flow":
                assert len(run["outputs"] or {}) == outputs
        stub.forget()
        assert (await _run(service, "two", max_model_calls=2))["status"] == "succeeded"


async def test_budgets_in_tokens_and_money_end_a_run_and_count_earlier_attempts(
    serve: Serve, model: tuple[_Model, str], prices: Path
) -> None:
    stub, base_url = model
    async with serve(_registry(), **_settings(base_url, prices)) as service:
        whole = await _run(service, "two")
        assert whole["status"] == "succeeded"
        assert whole["cost"] == pytest.approx(stub.cost)
        assert sum(task["cost"] for task in whole["tasks"]) == pytest.approx(whole["cost"])
        first = whole["tasks"][0]["cost"]

        stub.forget()
        run = await _run(service, "twelve", max_cost=first * 1.5)
        _was_ended(run, f"max_cost={first * 1.5:g}")
        assert stub.calls == 2
        assert list(run["outputs"]) == ["task_0", "task_1"]
        assert run["cost"] == pytest.approx(stub.cost)
        assert [task["cost"] is None for task in run["tasks"]] == [False] * 2 + [True] * 10

        # A retry continues with what is left: nothing.
        retried = await service.http.post(f"/api/runs/{run['run_id']}/retry")
        assert retried.status_code == 202
        again = await _ended(service, run["run_id"])
        _was_ended(again, "max_cost=")
        assert stub.calls == 2
        assert again["cost"] == run["cost"]

        stub.forget()
        run = await _run(service, "twelve", max_tokens=1)
        _was_ended(run, "the run's budget of 1 tokens is used up (max_tokens=1)")
        assert stub.calls == 1


async def _ended(service: Running, run_id: str, key: str = "") -> dict[str, Any]:
    while True:
        run: dict[str, Any] = (await _get(service, f"/api/runs/{run_id}", key)).json()
        if run["finished_at"]:
            return run
        await asyncio.sleep(0.02)


async def test_the_smallest_budget_of_crew_key_and_request_holds(
    serve: Serve, model: tuple[_Model, str]
) -> None:
    stub, base_url = model
    crews = _registry(max_model_calls=4)
    async with serve(crews, **_settings(base_url, auth="keys")) as service:
        keys = service.inside.api_keys
        free = await keys.create("free", Role.USER)
        tight = await keys.create("tight", Role.USER, max_model_calls=3)
        for key, fields, calls in (
            (free, {}, 4),
            (free, {"max_model_calls": 9}, 4),
            (tight, {}, 3),
            (tight, {"max_model_calls": 2}, 2),
        ):
            stub.forget()
            _was_ended(await _run(service, "twelve", key, **fields), f"max_model_calls={calls}")
            assert stub.calls == calls
        batch = {"crew": "twelve", "inputs": [{}, {}], "max_model_calls": 1}
        stub.forget()
        headers = {"Authorization": f"Bearer {free}"}
        answer = await service.http.post("/api/runs/batch", json=batch, headers=headers)
        assert answer.status_code == 202, answer.text
        for run_id in answer.json()["run_ids"]:
            _was_ended(await _ended(service, run_id, free), "max_model_calls=1")
        assert stub.calls == 2


async def _get(service: Running, path: str, key: str = "", **headers: str) -> httpx.Response:
    if key:
        headers["Authorization"] = f"Bearer {key}"
    answer = await service.http.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


async def test_a_model_without_a_price_has_no_cost_and_no_budget_in_money(
    serve: Serve, model: tuple[_Model, str], prices: Path
) -> None:
    stub, base_url = model
    settings = _settings(base_url, prices, llm_model="openai/other")
    async with serve(_registry(), **settings) as service:
        run = await _run(service, "two")
        assert run["cost"] is None
        assert run["usage"]["unpriced_calls"] == run["usage"]["model_calls"] == 2
        assert all(task["cost"] is None for task in run["tasks"])
        stub.forget()
        refused = await service.http.post("/api/runs", json={"crew": "two", "max_cost": 1})
        assert refused.status_code == 400
        assert "max_cost: the crew two calls the model openai/other" in refused.json()["error"]
        assert "PRICES_FILE" in refused.json()["error"]
        # The models of a flow are known when it calls them.
        _was_ended(await _run(service, "flow", max_cost=1), "PRICES_FILE has no price")
        assert stub.calls == 0


@pytest.mark.parametrize(
    ("field", "value"), [("max_cost", 0), ("max_model_calls", 0), ("max_tokens", -1)]
)
async def test_a_budget_of_nothing_is_refused(service: Running, field: str, value: int) -> None:
    answer = await service.http.post("/api/runs", json={"crew": "idea", field: value})
    assert answer.status_code == 400
    assert field in answer.json()["error"]


async def test_other_protocols_have_budgets(serve: Serve, model: tuple[_Model, str]) -> None:
    stub, base_url = model
    async with serve(_registry(), **_settings(base_url)) as service:
        answer = await service.http.post("/crews/twelve/kickoff", json={"max_model_calls": 2})
        assert answer.status_code == 200, answer.text
        _was_ended(await _ended(service, answer.json()["kickoff_id"]), "max_model_calls=2")
        assert stub.calls == 2

        given = {"crew-capture/budget": {"max_model_calls": 3}}
        wrong = {"crew-capture/budget": {"max_model_calls": 0}}
        params = {"name": "twelve", "arguments": {}}
        for meta, expected in ((given, "max_model_calls=3"), (wrong, "max_model_calls: must be")):
            request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
            answer = await service.http.post(
                "/mcp",
                json={**request, "params": {**params, "_meta": meta}},
                headers={"Accept": "application/json, text/event-stream"},
            )
            assert expected in answer.text, answer.text
        assert stub.calls == 5

        for metadata, expected in ((given, "max_model_calls=3"), (wrong, "max_model_calls: must")):
            data = {"data": {}, "mediaType": "application/json"}
            message = {"messageId": "1", "role": "ROLE_USER", "parts": [data], "metadata": metadata}
            answer = await service.http.post(
                "/a2a/twelve",
                json={**request, "method": "SendMessage", "params": {"message": message}},
                headers={"A2A-Version": "1.0"},
            )
            assert expected in answer.text, answer.text
        assert stub.calls == 8


async def test_usage_equals_what_the_model_server_counted(
    serve: Serve, model: tuple[_Model, str], prices: Path, database_url: str
) -> None:
    """Also of runs that fail or are cancelled; each key sees its own, and an admin all."""
    stub, base_url = model
    settings = _settings(base_url, prices, auth="keys", database_url=database_url)
    async with serve(_registry(), **settings) as service:
        keys = service.inside.api_keys
        anna, berta = [await keys.create(name, Role.USER) for name in ("anna", "berta")]
        admin = await keys.create("admin", Role.ADMIN)
        await _run(service, "two", anna)
        await _run(service, "twelve", anna, max_model_calls=5)
        of_anna = stub.calls, stub.input_tokens, stub.output_tokens, stub.cost
        last = range(stub.calls + 2, stub.calls + 50)
        stub.failures.update(dict.fromkeys(last, Failure(status=400)))
        failed = await _run(service, "two", berta)
        assert failed["error_type"] == "model_error"
        assert failed["cost"] > 0
        stub.failures.clear()
        stub.failures[stub.calls + 2] = Failure("hang")
        headers = {"Authorization": f"Bearer {berta}"}
        hanging = await service.http.post("/api/runs", json={"crew": "two"}, headers=headers)
        location, expected = hanging.headers["Location"], stub.calls + 2

        async def hangs() -> bool:
            return stub.calls == expected

        await until(hangs)
        cancelled = await service.http.post(f"{location}/cancel", headers=headers)
        assert cancelled.json()["status"] == "cancelled"

        async def usage(key: str, query: str = "") -> list[dict[str, Any]]:
            rows: list[dict[str, Any]] = (await _get(service, f"/api/usage{query}", key)).json()[
                "usage"
            ]
            return rows

        while True:  # the cancelled call ends with its connection
            (total,) = await usage(admin, "?group_by=")
            if total["calls"] >= stub.calls:
                break
            await asyncio.sleep(0.02)
        assert total["runs"] == 4
        assert total["input_tokens"] == stub.input_tokens
        assert total["output_tokens"] == stub.output_tokens
        assert total["cost"] == pytest.approx(stub.cost)
        assert total["unpriced_calls"] == 0

        today = datetime.now(UTC).date().isoformat()
        (mine,) = await usage(anna, "?group_by=day,key,model")
        assert mine["day"] == today
        assert mine["key"] == anna.split("_")[1]
        assert mine["model"] == "openai/stub"
        assert mine["runs"] == 2
        numbers = [mine[name] for name in ("calls", "input_tokens", "output_tokens")]
        assert [*numbers, mine["cost"]] == [*of_anna[:3], pytest.approx(of_anna[3])]
        by_crew = {row["crew"]: row["calls"] for row in await usage(anna, "?group_by=crew")}
        assert by_crew == {"two": 2, "twelve": 5}
        assert await usage(anna, f"?key={berta.split('_')[1]}") == []
        (of_crew,) = await usage(admin, f"?crew=twelve&key={mine['key']}&group_by=crew")
        assert of_crew["calls"] == 5
        assert await usage(admin, "?to=2020-01-01") == []
        assert await usage(admin, "?model=unknown") == []
        both = {row["key"] for row in await usage(admin, "?group_by=key")}
        assert both == {anna.split("_")[1], berta.split("_")[1]}

        answer = await _get(service, "/api/usage?group_by=key", admin, Accept="text/csv")
        assert answer.headers["content-type"].startswith("text/csv")
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert {row["key"] for row in rows} == both
        assert sum(float(row["cost"]) for row in rows) == pytest.approx(stub.cost)
        assert sum(int(row["calls"]) for row in rows) == total["calls"]
        assert (
            await _get(service, "/api/usage?format=csv&group_by=key", admin)
        ).text == answer.text
        for query in ("group_by=user", "from=yesterday", "to=2020-13-01", "group_by=day,day"):
            refused = await service.http.get(
                f"/api/usage?{query}", headers={"Authorization": f"Bearer {admin}"}
            )
            assert refused.status_code == 400, query


async def test_runs_of_a_key_at_once_stay_within_the_budget_of_its_day(
    serve: Serve, model: tuple[_Model, str], prices: Path, database_url: str
) -> None:
    """Two processes, one database: 200 runs, and room for 50. An overrun is at most one call."""
    stub, base_url = model
    stub.delay_seconds = 0.05
    settings = _settings(base_url, prices, auth="keys", database_url=database_url)
    async with (
        serve(_registry(), **settings) as one,
        serve(_registry(), **settings) as other,
    ):
        admin = await one.inside.api_keys.create("admin", Role.ADMIN)
        cost = (await _run(one, "two", admin))["cost"]
        key = await one.inside.api_keys.create("team", Role.USER, cost_per_day=nanos(50 * cost))
        headers = {"Authorization": f"Bearer {key}"}
        stub.forget()
        body = {"crew": "two", "inputs": [{}] * 100}
        for service in (one, other):
            answer = await service.http.post("/api/runs/batch", json=body, headers=headers)
            assert answer.status_code == 202, answer.text
        await until(one.all_settled, 60)
        rows = [row for row in await one.rows() if row.owner == key.split("_")[1]]
        assert {row.error_type for row in rows} == {None, "budget_exceeded"}
        assert all("(cost_per_day=" in str(row.error) for row in rows if row.error)
        assert 50 * cost <= stub.cost <= 50 * cost + cost
        refused = await other.http.post("/api/runs", json={"crew": "two"}, headers=headers)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["Retry-After"]) <= 86_401
        assert (await _run(one, "two", admin))["status"] == "succeeded"


async def test_reservations_of_a_lost_process_end_with_its_leases(
    serve: Serve, model: tuple[_Model, str], prices: Path, database_url: str
) -> None:
    stub, base_url = model
    settings = _settings(base_url, prices, cost_per_day=1, database_url=database_url)
    async with serve(_registry(), **settings) as service:
        lost = Accounts(service.inside.database, "a lost process")
        await lost.daily.reserve("127.0.0.1", nanos(0.999_999), nanos(1))
        await lost.aclose()
        run = await _run(service, "two")
        assert run["status"] == "succeeded"
        assert stub.calls == 2


async def test_the_budget_of_a_day_holds_over_two_processes(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    """`WORKERS=2`, 200 runs of one key, and room for 50."""
    prices = tmp_path / "prices.toml"
    prices.write_text("[stub-model]\ninput = 1\noutput = 0\n")
    site = Site(Servers(tmp_path), tmp_path, "sqlite", "local", fork_server.launch)
    settings = {"crews": "work=tests.deeds:create", "auth": "keys", "prices_file": prices}
    async with (
        deployed(site, model_seconds=0.2, **settings) as deployment,
        deployment.serving(workers=2) as serving,
    ):
        keys, bodies = ApiKeys(deployment.database), deployment.stub.bodies
        deployment.stub.record = True

        async def submit(path: str, key: str, body: dict[str, Any]) -> Any:
            # A connection of its own: any process may accept it.
            headers = {"Authorization": f"Bearer {key}"}
            url = f"{serving.url}/api/{path}"
            while True:
                async with aiohttp.request("POST", url, json=body, headers=headers) as answer:
                    if answer.status in (200, 202):
                        return await answer.json()
                    # A process knows a new key within a second.
                    assert answer.status == 401, await answer.text()

        run = {"crew": "work", "inputs": {"deed": "rest"}}
        admin = await keys.create("admin", Role.ADMIN)
        cost = (await submit("runs?wait=30", admin, run))["cost"]
        assert cost == pytest.approx(sum(map(_input_cost, bodies)))
        bodies.clear()
        key = await keys.create("team", Role.USER, cost_per_day=nanos(50 * cost))
        batch = {**run, "inputs": [run["inputs"]] * 4}
        await asyncio.gather(*(submit("runs/batch", key, batch) for _ in range(50)))
        await deployment.settled(60)

        spent = sum(map(_input_cost, bodies))
        assert 50 * cost <= spent + 1e-9
        assert spent <= 50 * cost + max(map(_input_cost, bodies)) + 1e-9
        rows = (await deployment.rows()).values()
        assert len({row.worker for row in rows}) == 2, "one process had all runs"
        assert {row.error_type for row in rows} == {None, "budget_exceeded"}
        async with deployment.database.read() as connection:
            costs = await connection.scalars(select(CallerUsage.cost).where(CallerUsage.cost > 0))
            assert nanos(spent) in set(costs)


def _input_cost(body: Body) -> float:
    """What a call costs if an input token is 1 USD for a million, and output is free."""
    words = [str(message.get("content") or "").split() for message in body["messages"]]
    return sum(map(len, words)) / 1e6
