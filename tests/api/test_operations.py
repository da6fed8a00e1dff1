"""`/api/operations`: what the service does and did, for admins."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from app.api.operations import OperationsFeed, OperationsState
from app.operations import HOUR_SECONDS, OperationsSampler, Sample
from app.telemetry import metrics
from app.version import VERSION
from storage import OutputKey
from tests.api.crews import Gate
from tests.runs.scripted import until
from tests.serving import Running, Serve


async def _states(service: Running) -> AsyncIterator[dict[str, Any]]:
    async with service.http.stream("GET", "/api/operations/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield msgspec.json.decode(line.removeprefix("data: "))


async def test_the_state_shows_runs_in_flight_and_their_end(serve: Serve, gate: Gate) -> None:
    async with serve(gate.crews, engine="stock") as service:
        assert (await service.http.get("/api/operations")).json()["now"]["in_flight"] == 0
        run = (await service.http.post("/api/runs", json={"crew": "idea"})).json()
        await asyncio.to_thread(gate.called.wait, 20)
        async with asyncio.timeout(30):
            async for state in _states(service):
                if state["now"]["in_flight"] == 1 and any(p["runs"] for p in state["processes"]):
                    break
        assert state["database_up"] is True
        assert state["problems"] == []
        (process,) = state["processes"]
        assert (process["runs"], process["version"]) == (1, VERSION)
        (stored,) = [each for each in state["storage"] if each["backend"] == "local"]
        assert stored["up"] is True
        gate.open.set()
        async with asyncio.timeout(30):
            async for state in _states(service):
                if state["now"]["in_flight"] == 0 and state["hour"]["succeeded"]:
                    break
        assert (state["hour"]["submitted"], state["hour"]["succeeded"]) == (1, 1)
        assert state["hour"]["model_calls"] >= 3
        assert state["hour"]["p95_seconds"]["runs"] > 0
        assert state["hour_before"]["seconds"] == 0
        whole = (await service.http.get("/api/operations")).json()
        assert whole["charts"]["times"] == sorted(set(whole["charts"]["times"]))
        assert {len(values) for values in whole["charts"]["series"].values()} == {
            len(whole["charts"]["times"])
        }
        assert run["run_id"]


async def test_clients_share_one_encoded_sample(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty open pages cost little more than one."""
    made: list[float] = []
    make = OperationsFeed._state

    async def counted(feed: OperationsFeed, sample: Sample) -> OperationsState:
        made.append(sample.at)
        return await make(feed, sample)

    monkeypatch.setattr(OperationsFeed, "_state", counted)

    async def follow() -> set[float]:
        seen: set[float] = set()
        async for state in _states(service):
            seen.add(state["time"])
            if len(seen) == 3:
                break
        return seen

    seen = await asyncio.gather(*(follow() for _ in range(20)))
    assert len(made) == len(set(made))
    assert len(set.union(*seen)) <= len(made)


async def test_a_sweep_removes_orphans_now(service: Running) -> None:
    async def is_swept() -> bool:  # not while the sweep of the start is under way
        report = (await service.http.post("/api/operations/sweep")).json()
        return bool(report["result"] == "done")

    await until(is_swept)
    store = service.inside.store
    key = OutputKey(uuid4(), 1, "report")
    await store.persist(key, "left behind")
    service.inside.sweeper._max_age_seconds = 0
    report = (await service.http.post("/api/operations/sweep")).json()
    assert report == {
        "result": "done",
        "removed": 1,
        "removed_bytes": 11,
        "kept": 0,
        "failed": 0,
        "skipped": {},
    }
    assert await service.stored() == 0

    async def is_shown() -> bool:
        state = (await service.http.get("/api/operations")).json()
        return [sweep["result"] for sweep in state["sweeps"]] == ["done"]

    await until(is_shown)


class _NoGauges:
    async def refresh(self, *, stores: bool) -> None:
        self.stores = stores


class _NoUsage:
    async def query(self, *_: object) -> list[object]:
        return []


async def test_two_hours_are_compared_and_points_kept_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_900_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    gauges: Any = _NoGauges()
    usage: Any = _NoUsage()
    sampler = OperationsSampler(gauges, None, None, usage)  # type: ignore[arg-type]
    with metrics.recording():
        for _ in range(3 * 360):
            # Each 10 s: one run in the first hours, two in the last.
            more = 2 if now >= 1_900_000_000 + 2 * HOUR_SECONDS else 1
            metrics.RUNS_SUBMITTED.inc("poem", by=more)
            metrics.RUN_DURATION.observe(0.2 * more, "poem", "succeeded")
            await sampler.run_once()
            now += 10
        sample = await sampler.after(-1)
    assert gauges.stores is False
    assert len(sampler.points()) in (360, 361)
    assert sample.hour.seconds == pytest.approx(HOUR_SECONDS, abs=60)
    assert sample.hour.counters["submitted"] == pytest.approx(720, abs=15)
    assert sample.hour_before.counters["submitted"] == pytest.approx(360, abs=15)
    assert (sample.hour_before.p50_seconds["runs"] or 0) > 0
    assert (sample.hour.p50_seconds["runs"] or 0) > 0.25
    assert sample.point.values["submitted_per_second"] == pytest.approx(0.2)
