"""Processes that accept runs and processes that execute them, on one database."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from app.crews.registry import CrewSpec, Registry
from app.roles import Role
from tests.api.crews import IDEA_AND_POEM, Gate
from tests.commands import run_python
from tests.runs.scripted import until
from tests.serving import Running, Serve


async def _submit(service: Running, crew: str = "poem", **inputs: Any) -> dict[str, Any]:
    body = {"crew": crew, "inputs": inputs or {"topic": "rain"}}
    response = await service.http.post("/api/runs", json=body)
    assert response.status_code == 202, response.text
    run: dict[str, Any] = response.json()
    return run


async def _run(service: Running, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = (await service.http.get(f"/api/runs/{run_id}")).json()
    return run


async def _is(service: Running, run_id: str, **fields: Any) -> bool:
    run = await _run(service, run_id)
    return fields.items() <= run.items()


async def _knows(service: Running, crew: str) -> bool:
    return (await service.http.get(f"/api/crews/{crew}")).status_code == 200


async def test_a_run_is_accepted_by_one_process_and_executed_by_another(serve: Serve) -> None:
    async with (
        serve(IDEA_AND_POEM, role=Role.EXECUTE) as worker,
        serve(role=Role.ACCEPT) as accepting,
    ):
        await until(lambda: _knows(accepting, "poem"))
        answer = await accepting.http.post("/api/run", json={"interest_area": "Food"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["inputs"]["interest_area"] == "Food"
        run = await _submit(accepting)
        events = await accepting.http.get(f"/api/runs/{run['run_id']}/events", timeout=30)
        assert "event: run.succeeded" in events.text
        ended = await _run(accepting, run["run_id"])
        assert [task["name"] for task in ended["tasks"]] == ["poem", "title"]
        output = await accepting.http.get(f"/api/runs/{run['run_id']}/outputs/poem")
        assert output.text == ended["outputs"]["poem"]
        (live,) = (await accepting.http.get("/api/workers")).json()["workers"]
        workers = {row.worker for row in await accepting.rows()}
        assert workers == {live["id"]}
        assert (await accepting.http.get("/health/ready")).json()["status"] == "ok"
        assert await worker.stored() == 0


async def test_accepting_processes_describe_crews_as_workers_do(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM) as both, serve(role=Role.ACCEPT) as accepting:
        await until(lambda: _knows(accepting, "poem"))
        for path in ("/api/crews", "/crews/poem/inputs"):
            described = [(await one.http.get(path)).json() for one in (both, accepting)]
            assert described[0] == described[1]
        cards = [(await one.http.get("/a2a/")).json() for one in (both, accepting)]
        assert [card["skills"] for card in cards[0]] == [card["skills"] for card in cards[1]]


@pytest.mark.parametrize(
    ("crew", "inputs", "status", "error"),
    [
        ("poem", {}, 400, "topic: missing; the crew poem needs it"),
        ("poem", {"topci": "rain"}, 400, "did you mean topic?"),
        ("poem", {"topic": "x" * 100_001}, 400, "topic: 100001 characters; at most 100000"),
        ("unknown", {}, 404, "no crew is named unknown"),
        ("flow", {"count": "many"}, 400, "count: Input should be a valid integer"),
        ("flow", {"names": 3}, 400, "names: Input should be a valid list"),
        ("flow", {"id": "1"}, 400, "id: the crew flow has no such input"),
    ],
)
async def test_inputs_are_validated_where_a_run_is_accepted(
    service_that_accepts: Running, crew: str, inputs: dict[str, Any], status: int, error: str
) -> None:
    body = {"crew": crew, "inputs": inputs}
    response = await service_that_accepts.http.post("/api/runs", json=body)
    assert response.status_code == status
    assert error in response.json()["error"]


async def test_secrets_that_would_not_reach_a_worker_are_refused(
    service_that_accepts: Running,
) -> None:
    body = {"crew": "poem", "inputs": {"topic": "rain"}, "secrets": {"token": "t"}}
    response = await service_that_accepts.http.post("/api/runs", json=body)
    assert response.status_code == 400
    assert "SECRETS_KEY" in response.json()["error"]


class State(BaseModel):
    """The state of a flow with plain fields."""

    count: int = 0
    names: list[str] = []
    limit: float | None = None


def _flow() -> Any:
    from crewai.flow.flow import Flow, start

    class Count(Flow[State]):
        @start()
        def begin(self) -> str:
            return f"{self.state.count} {self.state.limit}"

    return Count()


@pytest.fixture
async def service_that_accepts(serve: Serve) -> Any:
    crews = Registry([*IDEA_AND_POEM, CrewSpec("flow", _flow)])
    async with serve(crews, role=Role.EXECUTE), serve(role=Role.ACCEPT) as accepting:
        await until(lambda: _knows(accepting, "flow"))
        yield accepting


async def test_a_flow_gets_the_inputs_that_an_accepting_process_allows(
    service_that_accepts: Running,
) -> None:
    run = await _submit(service_that_accepts, "flow", count="3", limit=None)
    await until(lambda: _is(service_that_accepts, run["run_id"], status="succeeded"))
    ended = await _run(service_that_accepts, run["run_id"])
    assert ended["outputs"] == {"result": "3 None"}


async def test_a_run_waits_for_a_worker_that_has_its_crew(serve: Serve) -> None:
    async with serve(role=Role.ACCEPT) as accepting:
        response = await accepting.http.post("/api/runs", json={"crew": "poem", "inputs": {}})
        assert response.status_code == 404
        async with serve(IDEA_AND_POEM, role=Role.EXECUTE):
            await until(lambda: _knows(accepting, "poem"))
        run = await _submit(accepting)
        assert (run["status"], run["queue_reason"]) == ("queued", "no_worker")
        async with serve(IDEA_AND_POEM, role=Role.EXECUTE):
            await until(lambda: _is(accepting, run["run_id"], status="succeeded"))


async def test_a_cancellation_reaches_the_worker(serve: Serve, gate: Gate) -> None:
    async with (
        serve(gate.crews, role=Role.EXECUTE, engine="stock") as worker,
        serve(role=Role.ACCEPT) as accepting,
    ):
        await until(lambda: _knows(accepting, "idea"))
        run = await _submit(accepting, "idea", interest_area="Food")
        await until(lambda: _is(accepting, run["run_id"], status="running"))
        response = await accepting.http.post(f"/api/runs/{run['run_id']}/cancel")
        assert response.status_code == 200
        gate.open.set()
        await until(lambda: _is_idle(worker))
        assert await _is(accepting, run["run_id"], status="cancelled")


async def _is_idle(service: Running) -> bool:
    return not len(service.inside.worker)


async def test_runs_of_all_accepting_processes_count(serve: Serve) -> None:
    async with serve(IDEA_AND_POEM):
        pass  # it leaves the descriptions of its crews
    limits = {"max_runs_in_flight": 1, "max_runs_queued": 1}
    async with (
        serve(role=Role.ACCEPT, **limits) as accepting,
        serve(role=Role.ACCEPT, **limits) as other,
    ):
        for _ in range(2):
            await _submit(accepting)
        await until(lambda: _is_full(other))
        body = {"crew": "poem", "inputs": {"topic": "rain"}}
        assert (await accepting.http.post("/api/runs", json=body)).status_code == 503
        assert (await other.http.post("/api/runs", json=body)).status_code == 503


async def _is_full(service: Running) -> bool:
    return bool(service.inside.runs._dispatcher.load == 2)


async def test_a_worker_has_health_and_metrics_only(serve: Serve) -> None:
    async with serve(role=Role.EXECUTE) as worker:
        for path, status in (
            ("/health/live", 200),
            ("/health/ready", 200),
            ("/metrics", 200),
            ("/api/runs", 404),
            ("/", 404),
            ("/mcp", 404),
        ):
            assert (await worker.http.get(path)).status_code == status, path


_ACCEPT_ONLY = """
import asyncio, sys
from app.asgi import create_app
from app.roles import Role

app = create_app(role=Role.ACCEPT)

async def main():
    async with app.lifespan():
        with open("/proc/self/statm") as file:
            print(int(file.read().split()[1]) * 4096)
        assert not {"crewai", "openai", "mcp", "a2a"} & sys.modules.keys()

asyncio.run(main())
"""


def test_an_accepting_process_is_small_and_does_not_import_crewai(
    tmp_path: Path, sqlite_template: Path
) -> None:
    shutil.copyfile(sqlite_template, tmp_path / "runs.db")
    printed = run_python(
        _ACCEPT_ONLY,
        tmp_path,
        DATABASE_URL=f"sqlite:///{tmp_path}/runs.db",
        TEMP_DIR=str(tmp_path),
    )
    assert int(printed.split()[-1]) < 120_000_000
