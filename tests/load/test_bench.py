"""The bench measures what it says: its checks, its counts, its table."""

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.commands import ForkServer
from tests.load.bench import PARTS, Bench
from tests.load.generator import REPORTS, Load, drive, fault_of, profile
from tests.load.loads import (
    HUNDRED,
    THOUSAND,
    TOOL_USERS,
    Result,
    Scenario,
    add_ratios,
    drive_users,
    faults,
    loads_of,
    measure,
    request_json,
)
from tests.load.operations_cost import measure_operations
from tests.load.report import new_report, sections, write
from tests.load.services import SERVICES, deployed
from tests.load.storage_costs import Cost
from tests.load.stub_model import Failure, StubModel, run_stub
from tests.load.telemetry_costs import Added, TelemetryCost, measure_telemetry
from tests.load.watchers import EventCost, Received, Way, measure_events
from tests.load.watchers import fault_of as fault_of_events

MINE, OTHER = "user-00000000000a", "user-00000000000b"


def _answer(**changes: Any) -> bytes:
    outputs = dict.fromkeys(REPORTS, f"a report for {MINE}")
    answer = {"success": True, "outputs": outputs}
    return json.dumps({**answer, **changes}).encode()


def test_an_answer_with_all_reports_of_its_user_is_right() -> None:
    assert fault_of(200, _answer(), MINE) is None


@pytest.mark.parametrize(
    ("status", "raw", "fault"),
    [
        (503, _answer(success=False, error_type="overloaded"), "503: overloaded"),
        (200, _answer(success=False, error_type="model_error"), "200: model_error"),
        (200, b"<html>", "200: not JSON"),
        (200, _answer(outputs={}), "no profile_analysis"),
        (200, _answer(outputs=dict.fromkeys(REPORTS, " ")), "no profile_analysis"),
        (200, _answer(outputs=dict.fromkeys(REPORTS, "hi")), "somebody else's profile_analysis"),
        (
            200,
            _answer(outputs=dict.fromkeys(REPORTS, f"{MINE} {OTHER}")),
            "somebody else's profile_analysis",
        ),
    ],
)
def test_any_other_answer_is_a_fault(status: int, raw: bytes, fault: str) -> None:
    assert fault_of(status, raw, MINE) == fault


def test_a_user_s_profile_holds_the_marker() -> None:
    assert MINE in str(profile(MINE))


async def test_users_whom_a_server_fails_are_counted() -> None:
    # Not a crew's service at all: every user meets a 404.
    async with run_stub(StubModel()) as base_url:
        load = await drive(base_url, users=7)
    assert (load.users, load.succeeded) == (7, 0)
    assert sum(load.errors.values()) == 7


async def test_users_arrive_spread_over_the_requested_time() -> None:
    async with run_stub(StubModel()) as base_url:
        load = await drive(base_url, users=10, over_seconds=0.5)
    assert 0.45 <= load.makespan < 5


def test_the_limit_measured_for_real() -> None:
    result = measure("limit", Scenario(20, model_seconds=0.2))
    assert faults(result) == []
    assert result.load.succeeded == 20
    assert result.model_calls == 60
    assert 20 <= result.peak_model_calls <= 40
    assert result.load.p50 >= 0.4
    assert result.load.peak_in_flight == 20
    assert 0.1 < result.cpu_ms_per_run < 100


def test_two_processes_run_the_crew_with_the_tool(fork_server: ForkServer) -> None:
    result = measure("tool-two", Scenario(6, model_seconds=0.05), fork_server.launch)
    assert faults(result) == []
    assert (result.load.succeeded, result.model_calls) == (6, 24)
    # Every run has used its tool, which takes this much by itself.
    assert result.cpu_ms_per_run >= 200


def test_a_generated_project_with_memory_measured_for_real(fork_server: ForkServer) -> None:
    result = measure("memory", Scenario(6, model_seconds=0.05), fork_server.launch)
    assert faults(result) == []
    assert result.load.succeeded == 6


def test_the_cost_of_events_measured_for_real(fork_server: ForkServer) -> None:
    cost = measure_events(runs=8, rounds=1, model_seconds=0.3, start=fork_server.launch)
    assert cost.faults == []
    # The events of each run: queued, running, three tasks started and finished, succeeded.
    assert cost.events_per_run - cost.token_events_per_run == 9
    assert cost.token_events_per_run > 0
    assert all(cpu_ms > 0 for cpu_ms in cost.cpu_ms_per_run.values())


def test_the_cost_of_telemetry_measured_for_real(fork_server: ForkServer) -> None:
    cost = measure_telemetry(
        users=8, rounds=1, model_seconds=0.05, start=fork_server.launch, starts=1
    )
    # Of eight runs, a tenth may be none: only a missing trace is no fault of the bench.
    assert [fault for fault in cost.faults if fault != "plan-traced: no traces arrived"] == []
    assert all(cpu_ms > 0 for figures in cost.cpu_ms.values() for cpu_ms in figures)


def test_the_unobserved_service_records_nothing(tmp_path: Path, fork_server: ForkServer) -> None:
    service = SERVICES["plan-unobserved"]
    with deployed(service, tmp_path, 0.01, fork_server.launch) as it:
        assert drive_users(it.url, "idea", Scenario(3)).succeeded == 3
        (run, *_) = request_json(f"{it.url}/api/runs")["runs"]
        assert request_json(f"{it.url}/api/runs/{run['run_id']}/calls")["calls"] == []
        with urllib.request.urlopen(f"{it.url}/metrics", timeout=30) as answer:  # noqa: S310
            text = answer.read().decode()
    counted = re.findall(r"^crewcapture_runs_total{.*} (.*)$", text, re.MULTILINE)
    assert set(counted) <= {"0.0"}


def test_the_cost_of_telemetry_is_the_median_of_the_differences_of_processes() -> None:
    figures = {"plan-unobserved": [4.0, 8.0, 4.1], "plan": [4.2, 8.1, 4.4]}
    cost = TelemetryCost(100, {**figures, "plan-traced": [4.3, 8.4, 4.4]}, [])
    assert [round(ms, 3) for ms in cost.recorded] == [0.2, 0.1, 0.3]
    assert [round(ms, 3) for ms in cost.traced] == [0.1, 0.0, 0.3]


def test_the_interval_of_a_median_leaves_out_what_chance_allows() -> None:
    # That the median is beyond seven of 25 at an end has a chance of 2.2 %, beyond eight of 5.4 %.
    assert Added.of([float(n) for n in range(25)]) == (12, 7, 17)
    assert Added.of([float(n) for n in range(6)]) == (2.5, 0, 5)


def test_the_cost_of_pages_of_operations_measured_for_real(fork_server: ForkServer) -> None:
    cost = measure_operations(runs=4, pages=2, seconds=2.5, start=fork_server.launch)
    assert (cost.runs, cost.pages) == (4, 2)
    assert cost.longest_gap_seconds > 0
    report = new_report()
    report.operations_cost = msgspec.structs.replace(cost, core_share=0.0123)
    (section,) = sections(report)
    assert section.rows[0][:3] == ["4", "2", "1.2%"]


def _events(*kinds: str) -> list[Received]:
    names = iter(REPORTS)
    return [
        (seq, kind, {"run_id": "r", "name": next(names) if kind == "task.finished" else None})
        for seq, kind in enumerate(kinds)
    ]


WHOLE = ("run.queued", *["task.finished"] * 3, "run.succeeded")


@pytest.mark.parametrize(
    ("received", "fault"),
    [
        (_events(*WHOLE), None),
        ([], "not watched from the start"),
        (_events(*WHOLE)[1:], "not watched from the start"),
        (_events(*WHOLE)[:-1], "ended with task.finished"),
        (_events(*WHOLE[:-1], "run.failed"), "ended with run.failed"),
        (_events(*WHOLE)[:2] + _events(*WHOLE)[3:], "not every task finished once"),
        ([(1, *event[1:]) for event in _events(*WHOLE)], "events out of order"),
        (
            [(seq, kind, {**data, "run_id": "s"}) for seq, kind, data in _events(*WHOLE)],
            "somebody else's events",
        ),
    ],
)
def test_a_watcher_who_misses_something_is_a_fault(
    received: list[Received], fault: str | None
) -> None:
    assert fault_of_events(received, "r") == fault


def _result(service: str, makespan: float) -> Result:
    load = Load(100, 100, {}, makespan, makespan, makespan, 100)
    return Result(service, HUNDRED, load, 2.0, 200, 300, 50.0)


def test_ratios_are_to_the_limit_under_the_same_load() -> None:
    results = [_result("limit", 2.0), _result("plan", 3.0)]
    results.append(msgspec.structs.replace(_result("plan", 9.0), scenario=THOUSAND))
    add_ratios(results)
    assert [result.ratio for result in results] == [1.0, 1.5, None]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"lost_runs": 2}, "2 runs not saved once, as succeeded"),
        ({"left_outputs": 3}, "3 outputs left behind"),
        ({"model_calls": 299}, "299 model calls instead of 300"),
    ],
)
def test_a_load_that_went_wrong_says_how(changes: dict[str, int], fault: str) -> None:
    result = _result("plan", 3.0)
    assert faults(result) == []
    assert faults(msgspec.structs.replace(result, **changes)) == [fault]


def test_the_report_holds_what_was_measured_as_tables_and_as_json(tmp_path: Path) -> None:
    report = new_report()
    assert sections(report) == []
    report.results = [_result("limit", 2.0), _result("plan", 4.0), _result("plan-two", 2.5)]
    add_ratios(report.results)
    cpu_ms: dict[Way, float] = {"alone": 3.0, "streamed": 4.0, "watched": 5.5}
    cpu_ms |= {"fetched": 6.0, "shown": 6.6}
    report.event_cost = EventCost(1000, 2, cpu_ms, 20.0, 11.0, [])
    report.storage_costs = [Cost("local", False, 1000, 0.4, 0.5)]
    write(report, tmp_path)

    written = json.loads((tmp_path / "results.json").read_bytes())
    assert len(written["results"]) == 3
    assert written["machine"]["cores"] >= 1
    assert written["storage_costs"][0]["backend"] == "local"
    tables = (tmp_path / "results.md").read_text().split("### ")[1:]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()[2:] if line}) == 1
    users, processes, events, storage = tables
    assert "| 4.0 s | 2.00 |" in users
    assert "| 25.0 runs/s | 40.0 runs/s | 1.60 |" in processes
    assert "| 2.50 ms | under 3 ms | 1.10 | at most 1.1 |" in events
    assert "| local | write, delete | 1,000 | 0.40 ms | 0.50 ms |" in storage


def test_a_part_that_breaks_fails_the_bench_but_not_the_other_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(key: str, scenario: Scenario) -> Result:
        if key == "limit":
            raise RuntimeError("did not come up")
        return msgspec.structs.replace(_result(key, 2.0), scenario=scenario, model_calls=240)

    monkeypatch.setattr("tests.load.bench.measure", measured)
    bench = Bench({"limit", "tool"}, tmp_path, quick=False)
    bench.run()
    assert bench.failed
    assert [result.service for result in bench.report.results] == ["tool"]
    assert "tool" in (tmp_path / "results.md").read_text()


def test_stock_meets_a_hundred_users_only_and_quick_means_fewer() -> None:
    everything = loads_of(set(PARTS), quick=False)
    assert {load for key, load in everything if "kickoff" in key} == {HUNDRED}
    assert {load for key, load in everything if "tool" in key} == {TOOL_USERS}
    assert len(loads_of(set(PARTS), quick=True)) < len(everything)
    assert {key for key, _ in loads_of({"plan", "storage"}, quick=True)} == {"plan"}


async def test_the_stub_fails_the_requested_calls_and_counts_by_task() -> None:
    import aiohttp

    stub = StubModel(delay_seconds=0, failures={2: Failure(status=503)})
    body = {"model": "m", "messages": [{"role": "user", "content": f"Current Task: for {MINE}"}]}
    async with run_stub(stub) as base_url, aiohttp.ClientSession() as session:
        statuses = []
        for _ in range(3):
            async with session.post(f"{base_url}/chat/completions", json=body) as response:
                statuses.append(response.status)
        async with session.get(base_url.removesuffix("/v1") + "/stats") as response:
            stats = await response.json()
    assert statuses == [200, 503, 200]
    assert stats["calls_by_task"] == {"for user-*": 3}
