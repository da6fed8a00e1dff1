"""The service with QUEUE_URL: what clients and operators see of the broker."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.bootstrap import open_service
from app.resources import open_database, open_queue
from app.runs.queue.base import Hint, QueueUnavailable, RunQueue
from app.runs.queue.nats import NatsDriver
from app.settings import Settings, SettingsError
from tests.load.stub_model import Failure, StubModel, run_stub
from tests.servers import NatsServer, free_ports
from tests.serving import MakeSettings, Running, Serve
from tests.storage.waiting import until
from tests.telemetry.otlp import collecting


async def health(service: Running) -> dict[str, Any]:
    response = await service.http.get("/health/ready")
    assert response.status_code == 200
    body: dict[str, Any] = response.json()
    return body


async def test_an_outage_of_the_broker_is_shown_and_runs_wait_for_it(
    serve: Serve, nats_server: NatsServer
) -> None:
    async with serve(queue_url=nats_server.url) as service:
        assert (await health(service))["queue"] == "connected"
        response = await service.http.post("/api/run", json={}, timeout=60)
        assert response.status_code == 200, response.text
        nats_server.kill()

        async def shows(state: str) -> bool:
            return bool((await health(service))["queue"] == state)

        await until(lambda: shows("reconnecting"))
        assert "crewcapture_queue_disconnected" in (await service.http.get("/metrics")).text
        accepted = await service.http.post("/api/runs", json={"crew": "idea", "inputs": {}})
        assert accepted.status_code == 202
        nats_server.forget()
        await asyncio.to_thread(nats_server.start)
        await until(service.all_settled, seconds=60)
        assert (await health(service))["queue"] == "connected"
        run = await service.http.get(accepted.headers["Location"])
        assert run.json()["status"] == "succeeded"
        assert await service.stored() == 0


async def test_a_service_without_a_queue_shows_none(serve: Serve) -> None:
    async with serve() as service:
        assert "queue" not in await health(service)


async def test_two_services_share_the_runs_of_one_database(
    serve: Serve, nats_server: NatsServer
) -> None:
    shared = {"queue_url": nats_server.url, "max_runs_in_flight": 5}
    async with serve(**shared) as one, serve(**shared) as other:
        batch = {"crew": "idea", "inputs": [{}] * 60}
        response = await one.http.post("/api/runs/batch", json=batch)
        assert response.status_code in (200, 202), response.text
        await until(one.all_settled, seconds=120)
        workers = {row.worker for row in await one.rows()}
        assert len(workers) == 2
        assert {row.attempt for row in await other.rows()} == {1}


async def test_a_run_that_a_stopped_process_released_has_one_span_for_each_attempt(
    serve: Serve, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = StubModel(delay_seconds=0.0, failures={1: Failure("hang"), 2: Failure("hang")})
    async with collecting() as collector, run_stub(stub) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        model = {"llm_model": "openai/stub", "llm_base_url": url, "llm_api_key": "k"}
        shared = {"queue_url": nats_server.url, "shutdown_seconds": 0, **model}

        async def calls() -> bool:
            return stub.calls == 2

        async with serve(**shared) as first:
            response = await first.http.post("/api/runs", json={"crew": "idea"})
            assert response.status_code == 202
            await until(calls)
        async with serve(**shared) as second:
            await until(second.all_settled, seconds=60)
            trace = await collector.until("invoke_workflow idea", 2)
            (row,) = await second.rows()
    assert (row.status, row.attempt) == ("succeeded", 2)
    stopped, last = trace.all("invoke_workflow idea")
    assert (stopped.attributes["error.type"], last.error) == ("worker_stopped", False)
    assert last.links == [(stopped.trace_id, stopped.id)]
    trace.check_times()


async def test_runs_wait_for_room_at_a_broker_whose_disk_is_full(
    serve: Serve, tmp_path: Path
) -> None:
    configuration = tmp_path / "nats.conf"
    configuration.write_text("jetstream { max_file_store: 4KB }\n")  # some 30 ids
    with NatsServer(tmp_path / "streams", "-c", str(configuration)) as server:
        other = RunQueue(NatsDriver([server.url], prefix="other"))
        await other.start()
        with pytest.raises(QueueUnavailable, match="did not store"):
            await other.publish([Hint(uuid4(), "idea") for _ in range(200)])
        async with serve(queue_url=server.url, max_runs_in_flight=5) as service:
            batch = {"crew": "idea", "inputs": [{}] * 100}
            response = await service.http.post("/api/runs/batch", json=batch)
            assert response.status_code in (200, 202), response.text
            assert (await service.http.get("/health/ready")).status_code == 200
            while await other.waiting("idea"):
                for delivery in await other.receive("idea", 10, 1.0):
                    other.acknowledge(delivery)
            await until(service.all_settled, seconds=60)
            ended = {(row.status, row.attempt) for row in await service.rows()}
            assert ended == {("succeeded", 1)}
        await other.aclose()


async def test_an_unreachable_broker_stops_the_start_with_one_line(
    settings: MakeSettings,
) -> None:
    (port,) = free_ports(1)
    broken = settings(queue_url=f"nats://u:secret@127.0.0.1:{port}")
    with pytest.raises(SettingsError, match=r"^QUEUE_URL: NATS can't be used: .*$") as raised:
        async with open_service(broken):
            pass
    assert "secret" not in str(raised.value)


async def test_ids_that_a_lost_worker_received_are_delivered_again_before_leases_end(
    settings: MakeSettings, nats_server: NatsServer, migrated_postgresql_url: str
) -> None:
    database = {"database_url": migrated_postgresql_url, "lease_seconds": 11}
    for url in (nats_server.url, "postgresql"):
        made = settings(queue_url=url, **database)
        async with open_database(made) as opened, open_queue(made, opened) as queue:
            assert queue is not None
            assert queue.redelivery_seconds == made.lease_seconds / 2


def test_the_login_of_the_first_server_is_that_of_all() -> None:
    settings = Settings(queue_url="nats://u:p@one:4222,two:4222,v:q@three:4222")
    assert settings.queue_servers == [
        "nats://u:p@one:4222",
        "nats://u:p@two:4222",
        "nats://v:q@three:4222",
    ]
