"""`/metrics`: who may read it, and what it says of requests, runs, the store and the database."""

import asyncio

import pytest
from litestar.testing import TestClient
from sqlalchemy.exc import OperationalError

from app.access.api_keys import Role
from app.asgi import create_app
from app.crews.registry import CrewSpec, Registry, idea_crew
from app.runs.persistence.queries import RunQueries
from app.settings import SettingsError, load_settings
from storage import OutputStore, OutputUnavailable
from tests.api.crews import Gate
from tests.deeds import create
from tests.load.stub_model import Failure, StubModel, run_stub
from tests.runs.scripted import until
from tests.serving import MakeSettings, Running, Serve
from tests.telemetry.scraped import Scraped


async def scrape(service: Running, key: str | None = None) -> Scraped:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    response = await service.http.get("/metrics", headers=headers)
    assert response.status_code == 200, response.text
    return Scraped(response.text)


async def test_a_role_decides_who_may_read_metrics(serve: Serve) -> None:
    async with serve(auth="keys") as service:
        keys = {role: await service.inside.api_keys.create("a", role) for role in Role}
        assert (await service.http.get("/metrics")).status_code == 401
        for role, may_read, may_submit in (
            (Role.USER, 403, 202),
            (Role.ADMIN, 200, 202),
            (Role.METRICS, 200, 403),
        ):
            headers = {"Authorization": f"Bearer {keys[role]}"}
            read = await service.http.get("/metrics", headers=headers)
            assert read.status_code == may_read, role
            body = {"crew": "idea"}
            submitted = await service.http.post("/api/runs", json=body, headers=headers)
            assert submitted.status_code == may_submit, role
        headers = {"Authorization": f"Bearer {keys[Role.METRICS]}"}
        for path in ("/api/runs", "/api/crews", "/mcp", "/a2a/idea", "/crews/idea/inputs"):
            for method in ("GET", "POST"):
                refused = await service.http.request(method, path, headers=headers, json={})
                assert refused.status_code in {403, 404, 405}, (method, path)
        refused = await service.http.get("/api/runs", headers=headers)
        assert refused.json() == {
            "success": False,
            "error": "the role of this key is metrics, not admin or user",
            "error_type": "forbidden",
        }


async def test_without_keys_the_host_rules_are_those_of_other_routes(service: Running) -> None:
    refused = await service.http.get("/metrics", headers={"Host": "evil.example"})
    assert refused.status_code == 400
    assert (await service.http.get("/metrics", headers={"Host": "localhost"})).status_code == 200


def test_a_port_of_their_own_has_metrics_without_a_key_and_nothing_else(
    settings: MakeSettings,
) -> None:
    app = create_app(settings(auth="keys", metrics_port=9100, allowed_hosts="scraped.example"))
    with TestClient(app, base_url="http://scraped.example:9100") as client:
        response = client.get("/metrics")
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert Scraped(response.text)("crewcapture_database_up") == 1
        openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
        assert client.get("/metrics", headers=openmetrics).text.endswith("# EOF\n")
        for path in ("/", "/api/runs", "/health/live", "/schema", "/metrics/"):
            assert client.get(path).status_code == 404, path
        assert client.post("/metrics").status_code == 404
        assert client.get("/metrics", headers={"Host": "evil.example:9100"}).status_code == 400
        for path in ("/metrics", "/api/runs"):
            main = client.get(f"http://scraped.example:8000{path}")
            assert main.status_code == 401, path


def test_the_port_of_metrics_is_another_one() -> None:
    with pytest.raises(SettingsError, match="METRICS_PORT=8000"):
        load_settings(port=8000, metrics_port=8000)


async def test_runs_are_counted_by_their_crews_and_ends(serve: Serve) -> None:
    crews = Registry([idea_crew(), CrewSpec("work", create)])
    async with serve(crews) as service:
        for crew, inputs, count in (
            ("idea", {}, 3),
            ("work", {"deed": "rest"}, 1),
            ("work", {"deed": "fail"}, 2),
        ):
            for _ in range(count):
                run = {"crew": crew, "inputs": inputs}
                assert (await service.http.post("/api/runs?wait=20", json=run)).is_success
        found = await scrape(service)
        ended = "crewcapture_runs_ended_total"
        assert found(ended, crew="idea", status="succeeded", error_type="") == 3
        assert found(ended, crew="work", status="succeeded", error_type="") == 1
        assert found(ended, crew="work", status="failed", error_type="crew_error") == 2
        assert found(ended) == 6
        assert found("crewcapture_runs_submitted_total") == 6
        assert found("crewcapture_run_queue_duration_seconds_count", crew="work") == 3
        duration = "crewcapture_run_duration_seconds_count"
        assert found(duration, crew="work", status="failed") == 2
        assert found(duration) == 6
        assert found("crewcapture_database_commit_changes_sum") >= 6 * 3
        rows = await service.rows()
        stored = sum(len(row.outputs or {}) for row in rows)

        async def outputs_are_counted() -> bool:
            found = await scrape(service)
            operations = "crewcapture_storage_operations_total"
            return (
                found(operations, operation="persist", result="ok") == stored
                and found(operations, operation="delete", result="ok") == stored
                and found("crewcapture_storage_persisted_bytes_total") > 1000
                and found("crewcapture_storage_sweeps_total", result="done") >= 1
            )

        await until(outputs_are_counted)


async def test_model_calls_are_counted_with_their_tokens_and_ends(serve: Serve) -> None:
    stub = StubModel(delay_seconds=0)
    async with (
        run_stub(stub) as base_url,
        serve(llm_model="openai/stub", llm_base_url=base_url) as service,
    ):
        run = (await service.http.post("/api/runs?wait=20", json={"crew": "idea"})).json()
        stub.failures = dict.fromkeys(range(1, 50), Failure(status=400))
        stub.calls = 0
        assert (await service.http.post("/api/runs?wait=20", json={"crew": "idea"})).is_success
        found = await scrape(service)
    calls = "gen_ai_client_inference_duration_seconds_count"
    labels = {"gen_ai_request_model": "openai/stub"}
    assert found(calls, error_type="", **labels) == run["usage"]["successful_requests"] == 3
    assert found(calls, **labels) == 3 + stub.calls
    tokens = "gen_ai_client_inference_usage_input_tokens_total"
    assert found(tokens, **labels) == run["usage"]["prompt_tokens"]
    assert set(found.values("crewcapture_model_calls_in_flight").values()) == {0.0}


async def test_what_is_under_way_is_shown(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock", max_runs_in_flight=1) as service:
        for _ in range(3):
            await service.http.post("/api/runs", json={"crew": "idea"})
        await asyncio.to_thread(gate.called.wait, 20)

        async def is_shown() -> bool:
            found = await scrape(service)
            return (
                found("crewcapture_runs", status="running") == 1
                and found("crewcapture_runs", status="queued") == 2
                and found("crewcapture_run_leases") == 3
                and found("crewcapture_run_slots_used") == 1
                and found("crewcapture_run_slots") == 1
                and found("crewcapture_event_loop_lag_seconds_count") >= 1
            )

        await until(is_shown)
        gate.open.set()


async def test_watchers_are_counted_while_they_watch(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        submitted = await service.http.post("/api/runs", json={"crew": "idea"})

        async def shows(count: int) -> bool:
            return (await scrape(service))("crewcapture_subscribers") == count

        url = f"{submitted.headers['Location']}/events"
        async with service.http.stream("GET", url):
            await until(lambda: shows(1))
        await until(lambda: shows(0))
        gate.open.set()


async def test_no_client_can_make_a_time_series(service: Running) -> None:
    odd_methods = ("PROPFIND", "LOCK", "MKCOL")
    for number in range(30):
        await service.http.get(f"/no/such/path/{number}")
        await service.http.get(f"/api/runs/00000000-0000-0000-0000-0000000000{number:02}")
        await service.http.request(odd_methods[number % 3], "/api/runs")
        await service.http.post("/api/runs", json={"crew": f"crew-{number}"})
    count = "http_server_request_duration_seconds_count"
    found = await scrape(service)
    for route in ("/api/runs/{run_id}", "unmatched", "/api/runs"):
        labels = {"http_route": route, "http_response_status_code": "404"}
        assert found(count, **labels) == 30, route
    assert found(count, http_request_method="_OTHER") == 30
    assert found(count) == 120
    assert len(found.values(count)) <= 5
    assert len(found.values("crewcapture_runs_submitted_total")) == 1


async def test_a_run_of_an_unregistered_crew_has_one_label(serve: Serve, gate: Gate) -> None:
    crews = Registry([CrewSpec("gone", gate.crews.get("idea").build)])
    async with serve(gate.crews, engine="stock") as service:
        submitted = await service.http.post("/api/runs", json={"crew": "idea"})
        async with serve(crews) as other:
            url = submitted.headers["Location"]
            assert (await other.http.post(f"{url}/cancel")).is_success

            async def is_counted() -> bool:
                found = await scrape(other)
                return found("crewcapture_runs_ended_total", crew="other", status="cancelled") == 1

            await until(is_counted)
        gate.open.set()


async def test_metrics_are_shown_while_the_database_is_away(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as service:
        assert (await scrape(service))("crewcapture_database_up") == 1

        def refuse(*_: object, **__: object) -> None:
            raise OperationalError("SELECT", {}, OSError("gone"))

        with monkeypatch.context() as patch:
            patch.setattr(service.inside.database, "engine", _Away(refuse))

            async def is_shown() -> bool:
                found = await scrape(service)
                return (
                    found.values("crewcapture_database_up") == {(): 0}
                    and not found.values("crewcapture_runs")
                    and not found.values("crewcapture_webhook_deliveries_pending")
                    and found("crewcapture_database_errors_total") >= 1
                    and found("crewcapture_run_slots") == 2000
                )

            await until(is_shown)

        async def is_back() -> bool:
            found = await scrape(service)
            return (
                found("crewcapture_database_up") == 1 and len(found.values("crewcapture_runs")) == 3
            )

        await until(is_back)


class _Away:
    def __init__(self, connect: object) -> None:
        self.connect = connect


async def test_a_query_that_hangs_does_not_hold_up_a_scrape(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(RunQueries, "backlog", hang)
    async with serve() as service:
        service.inside.gauges._wait_seconds = 0.01
        for _ in range(3):
            assert (await scrape(service)).values("crewcapture_database_up") == {(): 0}


async def test_scrapes_share_queries(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = listings = 0
    backlog, usage_of = RunQueries.backlog, OutputStore.usage_of

    async def count_query(self: RunQueries) -> object:
        nonlocal queries
        queries += 1
        return await backlog(self)

    async def count_listing(self: OutputStore, backend: str) -> object:
        nonlocal listings
        listings += 1
        return await usage_of(self, backend)

    monkeypatch.setattr(RunQueries, "backlog", count_query)
    monkeypatch.setattr(OutputStore, "usage_of", count_listing)
    async with serve() as service:
        service.inside.gauges._database.keep_seconds = 600
        for _ in range(3):
            await asyncio.gather(*(scrape(service) for _ in range(10)))
    assert (queries, listings) == (1, 1)


async def test_each_backend_of_a_chain_is_shown(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(temp_backend="memory+local", memory_max_bytes=1_000_000) as service:

        async def is_shown() -> bool:
            found = await scrape(service)
            return (
                990_000 < found("crewcapture_storage_free_bytes", backend="memory") <= 1_000_000
                and found.values("crewcapture_storage_up")
                == {(("backend", "local"),): 1, (("backend", "memory"),): 1}
                and found("crewcapture_storage_free_bytes", backend="local") > 1_000_000
            )

        await until(is_shown)

        async def refuse(_: object, backend: str) -> None:
            raise OutputUnavailable("*", backend, "away")

        monkeypatch.setattr(OutputStore, "usage_of", refuse)
        service.inside.gauges._stores[0].keep_seconds = 0
        found = await scrape(service)
        assert found("crewcapture_storage_up", backend="local") == 0
        assert not found.values("crewcapture_stored_outputs", backend="local")
