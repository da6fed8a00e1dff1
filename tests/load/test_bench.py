"""The bench measures what it says: its checks, its counts, its table."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.load import bench
from tests.load.bench import (
    HUNDRED,
    THOUSAND,
    Result,
    Scenario,
    add_ratios,
    measure,
    plan_of,
    write,
)
from tests.load.generator import REPORTS, Load, drive, fault_of, profile
from tests.load.stub_model import Failure, StubModel, served

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


async def test_a_server_that_fails_some_users_is_told_by_count() -> None:
    # Not a crew's service at all: every user meets a 404.
    async with served(StubModel()) as base_url:
        load = await drive(base_url, users=7)
    assert (load.users, load.succeeded) == (7, 0)
    assert sum(load.errors.values()) == 7


async def test_users_arrive_spread_over_the_time_asked_for() -> None:
    async with served(StubModel()) as base_url:
        load = await drive(base_url, users=10, over_seconds=0.5)
    assert 0.45 <= load.makespan < 5


def test_the_limit_measured_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "MODEL_SECONDS", 0.2)
    result = measure("limit", Scenario(20))
    assert result.load.succeeded == 20
    assert result.load.errors == {}
    assert result.model_calls == 60
    assert 20 <= result.peak_model_calls <= 40
    assert result.load.p50 >= 0.4
    assert result.load.peak_in_flight == 20
    assert 0.1 < result.cpu_ms_per_run < 100


def _result(service: str, makespan: float) -> Result:
    load = Load(100, 100, {}, makespan, makespan, makespan, 100)
    return Result(service, HUNDRED, load, 2.0, 200, 300, 50.0)


def test_ratios_are_to_the_limit_under_the_same_load(tmp_path: Path) -> None:
    results = [_result("limit", 2.0), _result("plan", 3.0)]
    results.append(msgspec.structs.replace(_result("plan", 9.0), scenario=THOUSAND))
    add_ratios(results)
    assert [result.ratio for result in results] == [1.0, 1.5, None]

    write(results, tmp_path)
    written = json.loads((tmp_path / "results.json").read_bytes())
    assert len(written["results"]) == 3
    assert written["machine"]["cores"] >= 1
    table = (tmp_path / "results.md").read_text().splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert "| 1.50 |" in table[3]


def test_stock_meets_a_hundred_users_only_and_quick_means_fewer() -> None:
    loads = plan_of([], quick=False)
    assert {load for key, load in loads if "kickoff" in key} == {HUNDRED}
    assert len(loads) == 11
    assert len(plan_of([], quick=True)) < len(loads)
    assert {key for key, _ in plan_of(["plan"], quick=True)} == {"plan"}


async def test_the_stub_fails_the_calls_it_is_told_to_and_counts_by_task() -> None:
    import aiohttp

    stub = StubModel(delay_seconds=0, failures={2: Failure(status=503)})
    body = {"model": "m", "messages": [{"role": "user", "content": f"Current Task: for {MINE}"}]}
    async with served(stub) as base_url, aiohttp.ClientSession() as session:
        statuses = []
        for _ in range(3):
            async with session.post(f"{base_url}/chat/completions", json=body) as response:
                statuses.append(response.status)
        async with session.get(base_url.removesuffix("/v1") + "/stats") as response:
            stats = await response.json()
    assert statuses == [200, 503, 200]
    assert stats["calls_by_task"] == {"for user-*": 3}
