"""What metrics, records of calls and traces cost: the same runs in services with and without them.

The services of `SERVICES` whose names begin with `plan` run side by side, each idle while another
one is measured, and the rounds go through them in turns. So their differences say more than those
of services that were measured minutes apart. Each process has a speed of its own, which differs by
some tenths of a millisecond a run for as long as it lives. So all are started anew several times.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from math import comb
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import msgspec

from tests.commands import Launch, launch
from tests.load.loads import MODEL_SECONDS, Scenario, drive_users, request_json
from tests.load.services import SERVICES, Deployment, deployed, left_outputs, lost_runs

WAYS: Final = ("plan-unobserved", "plan", "plan-traced")
_WARM_UP_USERS: Final = 20
_STARTS: Final = 8
_ROUNDS: Final = 2
_CREW: Final = "idea"


class Added(NamedTuple):
    """The median of differences, and its confidence interval of 95 %, in milliseconds of CPU.

    The interval is that of the sign test: it assumes nothing about how differences are distributed.
    With five differences or fewer it is their range, and says less.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: list[float]) -> Added:
        ordered, count = sorted(differences), len(differences)
        outside = 0  # differences that may be left out at each end
        while sum(comb(count, below) for below in range(outside + 1)) / 2**count <= 0.025:
            outside += 1
        last = max(outside - 1, 0)
        return cls(median(ordered), ordered[last], ordered[-1 - last])


class TelemetryCost(msgspec.Struct):
    """CPU per run of each service, a figure for each of its processes."""

    users: int
    cpu_ms: dict[str, list[float]]
    faults: list[str]

    @property
    def recorded(self) -> Added:
        """What metrics and records of calls add to a run."""
        return self._added("plan", "plan-unobserved")

    @property
    def traced(self) -> Added:
        """What traces of a tenth of the runs add to a run."""
        return self._added("plan-traced", "plan")

    def _added(self, more: str, less: str) -> Added:
        pairs = zip(self.cpu_ms[more], self.cpu_ms[less], strict=True)
        return Added.of([one - other for one, other in pairs])


def measure_telemetry(
    users: int = 1000,
    rounds: int = _ROUNDS,
    model_seconds: float = MODEL_SECONDS,
    start: Launch = launch,
    starts: int = _STARTS,
) -> TelemetryCost:
    """Users of each service in turns, `rounds` times for each of its processes."""
    cost = TelemetryCost(users, {way: [] for way in WAYS}, [])
    for _ in range(starts):
        _measure_once(cost, rounds, model_seconds, start)
    return cost


def _measure_once(cost: TelemetryCost, rounds: int, model_seconds: float, start: Launch) -> None:
    spent = dict.fromkeys(WAYS, 0.0)
    with tempfile.TemporaryDirectory(prefix="crew-capture-bench-") as name, ExitStack() as stack:
        services = {}
        for way in WAYS:
            (folder := Path(name) / way).mkdir()
            start_it = deployed(SERVICES[way], folder, model_seconds, start)
            services[way] = stack.enter_context(start_it)
            drive_users(services[way].url, _CREW, Scenario(_WARM_UP_USERS))
        order = list(services.items())
        for _ in range(rounds):
            order.reverse()  # so that none is always measured last
            for way, service in order:
                before = service.process.cpu_seconds()
                load = drive_users(service.url, _CREW, Scenario(cost.users))
                spent[way] += service.process.cpu_seconds() - before
                cost.faults += [f"{way}: {n} x {error}" for error, n in load.errors.items()]
        cost.faults += _faults(services, cost.users * rounds + _WARM_UP_USERS)
    for way, seconds in spent.items():
        cost.cpu_ms[way].append(seconds / (rounds * cost.users) * 1000)


def _faults(services: Mapping[str, Deployment], runs: int) -> list[str]:
    """What went wrong, and which service is not the one that its name says."""
    found = []
    for way, service in services.items():
        if lost := lost_runs(service.folder, runs):
            found.append(f"{way}: {lost} runs not saved once, as succeeded")
        if left := left_outputs(service.folder):
            found.append(f"{way}: {left} outputs left behind")
        is_traced = request_json(f"{service.model_url}/stats")["trace_exports"] > 0
        if is_traced != (way == "plan-traced"):
            found.append(f"{way}: {'' if is_traced else 'no '}traces arrived")
    return found
