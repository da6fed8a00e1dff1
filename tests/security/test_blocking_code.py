"""Blocking code of one crew affects neither the service nor another crew's runs."""

from typing import Any

import httpx
from crewai import Crew

from app.crews.registry import CrewSpec, Registry
from tests.engine.blocking import Gate, crew_through
from tests.engine.crews import one
from tests.engine.recording import RecordingLLM
from tests.serving import Running, Serve
from tests.storage.waiting import until

BODY = {"inputs": {"topic": "tea", "year": "2031"}}


async def _submit(service: Running, crew: str) -> httpx.Response:
    return await service.http.post("/api/runs", json={"crew": crew, **BODY})


async def _run(service: Running, run_id: str) -> Any:
    return (await service.http.get(f"/api/runs/{run_id}")).json()


async def _abandoned(service: Running) -> int:
    ready = await service.http.get("/health/ready")
    assert ready.status_code == 200
    count: int = ready.json()["abandoned_threads"]
    return count


async def test_ten_blocking_factories_end_by_a_request_that_the_same_process_answers(
    serve: Serve,
) -> None:
    model, gate = RecordingLLM(), Gate()

    def blocking() -> Crew:
        gate.pass_through()
        return one()(model)

    def opening() -> Crew:
        gate.opened.set()
        return one()(model)

    crews = Registry([CrewSpec("blocking", blocking), CrewSpec("opening", opening)])
    async with serve(crews) as service:
        gate.close()
        submitted = [await _submit(service, "blocking") for _ in range(10)]
        assert {response.status_code for response in submitted} == {202}
        await gate.reached()
        assert (await service.http.get("/health/live")).status_code == 200
        assert not gate.opened.is_set()
        assert (await _submit(service, "opening")).status_code == 202
        await until(service.all_settled)
        statuses = {row.status for row in await service.rows()}
        assert statuses == {"succeeded"}


async def test_a_build_that_hangs_ends_its_run_as_a_timeout(serve: Serve) -> None:
    model, gate = RecordingLLM(), Gate()

    def blocking() -> Crew:
        gate.pass_through()
        return one()(model)

    crews = Registry([CrewSpec("blocking", blocking), CrewSpec("other", lambda: one()(model))])
    async with serve(crews, run_timeout_seconds=0.5, max_runs_in_flight=1) as service:
        gate.close()
        submitted = (await _submit(service, "blocking")).json()
        await _submit(service, "other")
        # It has the one slot after the hung build's timeout.
        await until(service.all_settled)
        assert [row.status for row in await service.rows()] == ["failed", "succeeded"]
        assert (await _run(service, submitted["run_id"]))["error_type"] == "run_timeout"
        assert await _abandoned(service) == 1
        gate.opened.set()

        async def has_ended() -> bool:
            return await _abandoned(service) == 0

        await until(has_ended)


async def test_runs_that_need_threads_are_refused_while_too_many_are_abandoned(
    serve: Serve,
) -> None:
    gate, model = Gate(), RecordingLLM()
    crews = Registry(
        [CrewSpec("waiting", crew_through(gate)), CrewSpec("plan", lambda: one()(model))]
    )
    async with serve(crews, max_abandoned_threads=1) as service:
        gate.close()
        submitted = (await _submit(service, "waiting")).json()
        await gate.reached()
        cancelled = await service.http.post(f"/api/runs/{submitted['run_id']}/cancel", json={})
        assert cancelled.status_code == 200, cancelled.text

        async def is_abandoned() -> bool:
            return await _abandoned(service) == 1

        await until(is_abandoned)
        refused = await _submit(service, "waiting")
        assert refused.status_code == 503
        assert refused.json()["error_type"] == "overloaded"
        assert "MAX_ABANDONED_THREADS=1" in refused.json()["error"]
        assert int(refused.headers["Retry-After"]) > 0
        assert len(await service.rows()) == 1, "nothing is accepted"
        assert (await service.http.get("/health/live")).status_code == 200
        assert (await _submit(service, "plan")).status_code == 202
        await until(service.all_settled)
        assert [row.status for row in await service.rows()] == ["cancelled", "succeeded"]
        gate.opened.set()

        async def is_accepted() -> bool:
            return (await _submit(service, "waiting")).status_code == 202

        await until(is_accepted)
        await until(service.all_settled)
