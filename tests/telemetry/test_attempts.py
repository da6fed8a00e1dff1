"""All attempts at a run are in one trace: each span links the one before, whoever executes it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from sqlalchemy import update

from app.db import Database
from app.runs.models import UserRun
from app.runs.persistence.repository import RunRepository
from app.runs.records import NewRun
from app.telemetry.tracing import Key, attempt_span_id
from tests.api.crews import LETTER, Letters
from tests.commands import ForkServer, RunCommand
from tests.faults.deployment import Servers, Site, deployed
from tests.load.stub_model import Failure
from tests.runs.receiver import SETTING, receiving
from tests.runs.scripted import until
from tests.telemetry.conftest import MakeTraced, Traced
from tests.telemetry.crews import SECRET
from tests.telemetry.otlp import Collector, Span, Trace, collecting

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_RUN = "invoke_workflow {}"


def _attempts(trace: Trace, crew: str) -> list[Span]:
    """The spans of a run's attempts: each links the one before, all are of one request."""
    attempts = trace.all(_RUN.format(crew))
    assert len({attempt.parent_id for attempt in attempts}) == 1
    links = [attempt.links for attempt in attempts]
    assert links == [[], *([(one.trace_id, one.id)] for one in attempts[:-1])]
    trace.check_times()
    return attempts


async def test_a_run_whose_process_is_killed_stays_one_trace(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    site = Site(Servers(tmp_path), tmp_path, "sqlite", "local", fork_server.launch)
    async with collecting() as collector, deployed(site, model_seconds=0.0) as deployment:
        tracing = {
            "otel_exporter_otlp_endpoint": collector.endpoint,
            "otel_bsp_schedule_delay": 20,
        }
        deployment.stub.failures = {3: Failure("hang")}  # of the last task
        async with deployment.serving(**tracing) as serving:
            body = {"crew": "idea", "inputs": {"interest_area": SECRET}}
            async with aiohttp.request("POST", f"{serving.url}/api/runs", json=body) as answer:
                assert answer.status == 202
            await collector.until("store output", 2)
            await until(_holds(lambda: deployment.stub.calls == 3))
            await serving.kill()
        async with deployment.database.write() as connection:  # rather than wait for its end
            await connection.execute(update(UserRun).values(lease_until=datetime.now(UTC)))
        async with deployment.serving(**tracing) as serving:
            await deployment.settled(60)
            trace = await collector.until(_RUN.format("idea"), 2)
            await serving.stop()
    lost, last = _attempts(collector.only, "idea")
    assert [root.name for root in trace.roots()] == ["POST /api/runs"]
    assert lost.attributes[Key.ERROR_TYPE] == "worker_lost"
    assert (lost.attributes[Key.ATTEMPT], last.attributes[Key.ATTEMPT]) == (1, 2)
    assert last.attributes[Key.RUN_STATUS] == "succeeded"
    agents = [[n for n in trace.children(one) if "invoke_agent" in n] for one in (lost, last)]
    assert [len(names) for names in agents] == [2, 1]
    assert SECRET.encode() not in b"".join(collector.bodies)


async def _lose_attempts(service: Traced, count: int) -> list[str]:
    """A run that so many workers have claimed and left; returns the ids of their spans."""
    inside = service.service.inside
    rows = RunRepository(
        inside.database, inside.events, inside.engine.fingerprint, worker="w", lease_seconds=60
    )
    run = NewRun(uuid4(), "three", {"topic": SECRET}, rows.now())
    await rows.add([run])
    starts = []
    for _ in range(count):
        claimed = await rows.claim(run.run_id)
        assert claimed is not None
        starts.append(claimed.started_at)
        # Not before the end of all of them: the service would claim the run.
        await _set_lease(inside.database, None)
    await _set_lease(inside.database, datetime.now(UTC))
    return [f"{attempt_span_id(run.run_id, start):016x}" for start in starts]


async def _set_lease(database: Database, until: datetime | None) -> None:
    async with database.write() as connection:
        await connection.execute(update(UserRun).values(lease_until=until))


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_run_that_is_given_up_has_the_span_of_its_last_attempt(
    traced: MakeTraced, lost: int
) -> None:
    async with traced(max_attempts=1) as service:
        ids = await _lose_attempts(service, lost)
        trace = await service.collector.until(_RUN.format("three"))
        await until(service.service.all_settled)
    span = trace.one(_RUN.format("three"))
    assert span.id == ids[-1]
    assert span.links == [(span.trace_id, id_) for id_ in ids[-2:-1]]
    assert span.attributes[Key.ATTEMPT] == lost
    assert span.attributes[Key.RUN_STATUS] == "failed"
    assert span.attributes[Key.ERROR_TYPE] == "worker_lost"
    assert trace.shape() == (_RUN.format("three"), [("settle run", [])])
    trace.check_times()


async def test_a_second_takeover_links_all_attempts(traced: MakeTraced) -> None:
    async with traced(max_attempts=9) as service:
        first, second = await _lose_attempts(service, 2)
        trace = await service.collector.until(_RUN.format("three"), 2)
    lost, last = trace.all(_RUN.format("three"))
    assert lost.id == second
    assert [one.links for one in (lost, last)] == [
        [(lost.trace_id, id_)] for id_ in (first, second)
    ]
    assert last.attributes[Key.RUN_STATUS] == "succeeded"


async def test_with_two_processes_each_run_is_a_trace_of_one_of_them(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    numbers: list[int] = []
    site = Site(Servers(tmp_path), tmp_path, "sqlite", "local", fork_server.launch)
    async with collecting() as collector, deployed(site, model_seconds=0.0) as deployment:
        tracing = {
            "otel_exporter_otlp_endpoint": collector.endpoint,
            "otel_resource_attributes": "deployment.environment.name=test",
        }
        async with deployment.serving(workers=2, **tracing) as serving:

            async def submit() -> None:
                # A connection of its own: any process may accept it.
                numbers.append(number := len(numbers) + 1)
                headers = {"traceparent": f"00-{number:032x}-{number:016x}-01"}
                body = {"crew": "idea", "inputs": {"interest_area": SECRET}}
                url = f"{serving.url}/api/runs"
                async with aiohttp.request("POST", url, json=body, headers=headers) as answer:
                    assert answer.status == 202

            async def both_have_runs() -> bool:
                await asyncio.gather(*(submit() for _ in range(8)))
                return len({row.worker for row in (await deployment.rows()).values()}) == 2

            await until(both_have_runs, 30)
            await deployment.settled(60)
            rows = await deployment.rows()
            await serving.stop()  # it sends the spans that are left
    traces = [collector.trace(f"{number:032x}") for number in numbers]
    assert sum(len(trace.spans) for trace in traces) == len(collector.spans)
    for number, trace in zip(numbers, traces, strict=True):
        trace.check_times()
        (request,) = trace.roots()
        assert (request.name, request.parent_id) == ("POST /api/runs", f"{number:016x}")
        run = trace.one(_RUN.format("idea"))
        assert trace.parent(run) == request
        assert len([name for name in trace.children(run) if "invoke_agent" in name]) == 3
        (resource,) = {tuple(sorted(span.resource.items())) for span in trace.spans}
        named = dict(resource)
        assert named["service.name"] == "crew-capture"
        assert named["deployment.environment.name"] == "test"
        assert named["service.instance.id"] == rows[UUID(run.attributes[Key.RUN_ID])].worker


async def test_a_run_without_a_request_is_a_trace(crew_capture: RunCommand) -> None:
    async with collecting() as collector:
        tracing = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        run = partial(crew_capture, "run", "--json", LLM_MODEL="offline", **tracing)
        done = await asyncio.to_thread(run)
        assert done.returncode == 0, done.stderr
    (root,) = collector.only.roots()
    assert (root.name, root.attributes[Key.RUN_STATUS]) == (_RUN.format("idea"), "succeeded")


async def test_a_retry_links_the_attempt_that_failed(traced: MakeTraced) -> None:
    async with traced() as service:
        service.stub.failures = dict.fromkeys(range(1, 20), Failure(status=400))
        failed = await service.run("guarded")
        assert failed["status"] == "failed"
        service.stub.reset()
        await service.http.post(f"/api/runs/{failed['run_id']}/retry")
        attempts = _attempts(await service.collector.until(_RUN.format("guarded"), 2), "guarded")
        assert [one.error for one in attempts] == [True, False]


async def test_a_review_continues_the_trace(traced: MakeTraced, letters: Letters) -> None:
    async with traced(crews=letters.crews, llm_model="offline") as service:
        body = {"crew": "letter", "inputs": LETTER}
        run_id = (await service.http.post("/api/runs", json=body)).json()["run_id"]
        await service.collector.until(_RUN.format("letter"))
        review = {"task": "draft", "approve": True}
        answer = await service.http.post(f"/api/runs/{run_id}/resume", json=review)
        assert answer.status_code < 300, answer.text
        attempts = _attempts(await service.collector.until(_RUN.format("letter"), 2), "letter")
    statuses = [one.attributes[Key.RUN_STATUS] for one in attempts]
    assert statuses == ["awaiting_human", "succeeded"]
    assert not any(one.error for one in attempts)


async def test_webhooks_name_the_span_of_the_run(traced: MakeTraced) -> None:
    options: dict[str, Any] = {"webhook_secret": SETTING, "webhook_allow_private": True}
    async with receiving() as receiver, traced(**options) as service:
        body = {"crew": "three", "inputs": {"topic": SECRET}, "webhook_url": receiver.url}
        await service.http.post("/api/runs?wait=60", json=body)
        await until(_holds(lambda: len(receiver.arrivals) == 4))
        run = (await service.collector.until(_RUN.format("three"))).one(_RUN.format("three"))
    sent = {arrival.traceparent for arrival in receiver.arrivals}
    assert {header[:-2] for header in sent if header} == {f"00-{run.trace_id}-{run.id}-"}


@pytest.mark.parametrize("status", [503, 400])
async def test_a_receiver_that_refuses_costs_no_run(
    traced: MakeTraced, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with traced({"OTEL_BSP_SCHEDULE_DELAY": "1"}) as service:
        service.collector.status = status
        for _ in range(3):
            assert (await service.run("three"))["status"] == "succeeded"
        await until(_holds(lambda: len(service.collector.bodies) > (1 if status == 503 else 3)))
    lines = [
        record for record in caplog.records if "telemetry" in record.name or "trace" in record.name
    ]
    assert len(lines) <= 1
    assert not any(record.exc_info for record in lines)


async def test_a_receiver_that_hangs_costs_no_run_and_no_stop(
    traced: MakeTraced, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.telemetry.sdk._CLOSE_SECONDS", 0.1)
    connected = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endpoint = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{port}/v1/traces"}
    async with traced(endpoint) as service:
        assert (await service.run("three"))["status"] == "succeeded"
        await connected.wait()
        assert (await service.run("three"))["status"] == "succeeded"
    server.close()


async def test_a_stop_sends_the_spans_that_are_left(traced: MakeTraced) -> None:
    async with traced({"OTEL_BSP_SCHEDULE_DELAY": "3600000"}, shutdown_seconds=0) as service:
        await service.run("tool")
        service.stub.reset()
        service.stub.failures = {1: Failure("hang"), 2: Failure("hang")}
        body = {"crew": "three", "inputs": {"topic": SECRET}}
        await service.http.post("/api/runs", json=body)
        await until(_holds(lambda: service.stub.calls == 2))
        collector: Collector = service.collector
        assert collector.spans == []
        await service.service.inside.stop(0)
        await service.service.inside.tracing.aclose()
        (stopped,) = (span for span in collector.spans if span.name == _RUN.format("three"))
        assert stopped.attributes[Key.ERROR_TYPE] == "worker_stopped"
        collector.trace(stopped.trace_id).check_times()
        assert _RUN.format("tool") in {span.name for span in collector.spans}


def _holds(condition: Callable[[], bool]) -> Any:
    async def holds() -> bool:
        return condition()

    return holds
