"""The alerts and the dashboard of docs/monitoring fit the metrics that exist."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from app.telemetry.metrics import TABLE
from tests.docs.page import ROOT, blocks
from tests.monitoring.expressions import metrics_in, problems
from tests.servers import free_ports
from tests.serving import Running, Serve

_FOLDER = ROOT / "docs/monitoring"
_PAGE = ROOT / "docs/monitoring.md"
_UNIT_TESTS = Path(__file__).with_name("alerts_test.yaml")
_RULES = [
    rule
    for group in yaml.safe_load((_FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
_DASHBOARD = json.loads((_FOLDER / "dashboard.json").read_text())
_PANELS = [panel for panel in _DASHBOARD["panels"] if panel["type"] != "row"]
_OF_PANELS = [target["expr"] for panel in _PANELS for target in panel["targets"]]

_PROMTOOL, _PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    _PROMTOOL is None or _PROMETHEUS is None,
    reason="needs prometheus and promtool, as Debian's package prometheus has them",
)


def _promtool(*words: str, text: str = "") -> None:
    assert _PROMTOOL
    done = subprocess.run(
        [_PROMTOOL, *words], input=text, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr


@pytest.mark.parametrize("rule", _RULES, ids=lambda rule: rule["alert"])
def test_an_alert_uses_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert list(problems(rule["expr"])) == []


@pytest.mark.parametrize("expression", _OF_PANELS)
def test_a_panel_uses_metrics_and_labels_that_exist(expression: str) -> None:
    assert list(problems(expression)) == []


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("crewcapture_unknown > 0", "no metric crewcapture_unknown"),
        ('crewcapture_runs{crew="a"}', "crewcapture_runs has no label crew"),
        ("sum by (crew) (crewcapture_runs)", "has the label crew"),
        ("rate(crewcapture_run_duration_seconds[5m])", "no metric crewcapture_run_duration"),
        ("rate(crewcapture_runs_ended_total_count[5m])", "no metric crewcapture_runs_ended_total_"),
        ('sum(rate(crewcapture_runs_ended_total{le="1"}[5m]))', "has no label le"),
    ],
)
def test_a_wrong_expression_is_found(expression: str, problem: str) -> None:
    assert any(problem in found for found in problems(expression))


def test_the_dashboard_shows_every_metric() -> None:
    shown = set[str]().union(*map(metrics_in, _OF_PANELS))
    assert TABLE.keys() - shown == set()


def test_the_dashboard_has_one_panel_for_each_position_and_title() -> None:
    identifiers = [panel["id"] for panel in _DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    titles = [panel["title"] for panel in _PANELS]
    assert len(set(titles)) == len(titles)
    spaces = [panel["gridPos"] for panel in _DASHBOARD["panels"]]
    assert all(space["x"] + space["w"] <= 24 for space in spaces)
    rows = sorted((space["y"], space["x"], space["w"]) for space in spaces)
    for (y, x, width), (next_y, next_x, _) in pairwise(rows):
        assert y < next_y or x + width <= next_x


def test_each_alert_is_explained_and_tested_both_ways() -> None:
    names = [rule["alert"] for rule in _RULES]
    explained = re.findall(r"^\| `(CrewCapture\w+)` \|", _PAGE.read_text(), re.MULTILINE)
    assert explained == names
    tested = {True: set[str](), False: set[str]()}
    for test in yaml.safe_load(_UNIT_TESTS.read_text())["tests"]:
        for expected in test["alert_rule_test"]:
            tested[bool(expected["exp_alerts"])].add(expected["alertname"])
    assert tested == {True: set(names), False: set(names)}


@needs_prometheus
def test_the_alerts_fire_when_they_should() -> None:
    _promtool("check", "rules", str(_FOLDER / "alerts.yaml"))
    _promtool("test", "rules", str(_UNIT_TESTS))


class _Prometheus(NamedTuple):
    """A server, and a client of its API."""

    api: httpx.AsyncClient
    process: asyncio.subprocess.Process

    async def read(self, path: str, **parameters: str) -> Any:
        response = await self.api.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    async def until_ready(self) -> None:
        while True:
            with suppress(httpx.TransportError):
                if (await self.api.get("/-/ready")).status_code == 200:
                    return
            assert self.process.returncode is None, "it has ended; see its log"
            await asyncio.sleep(0.05)

    async def target(self) -> dict[str, Any]:
        """The scraped service, once its first scrape has ended."""
        while True:
            targets = (await self.read("targets"))["activeTargets"]
            if targets and targets[0]["health"] != "unknown":
                found: dict[str, Any] = targets[0]
                return found
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _prometheus(folder: Path, target: str, key: str) -> AsyncIterator[_Prometheus]:
    """A server with the configuration of the page."""
    (example,) = (block.text for block in blocks(_PAGE) if block.language == "yaml")
    (folder / "key").write_text(key)
    shutil.copyfile(_FOLDER / "alerts.yaml", folder / "alerts.yaml")
    config = example.replace("127.0.0.1:8000", target)
    config = config.replace("/etc/prometheus/crew-capture.key", str(folder / "key"))
    (folder / "prometheus.yml").write_text(f"global: {{scrape_interval: 1s}}\n{config}")
    _promtool("check", "config", str(folder / "prometheus.yml"))
    (port,) = free_ports(1)
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            _PROMETHEUS or "",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as api:
            yield _Prometheus(api, process)
    finally:
        process.terminate()
        await process.wait()


@needs_prometheus
async def test_a_real_prometheus_scrapes_the_service(serve: Serve, tmp_path: Path) -> None:
    async with serve(auth="keys") as service:
        await _run_twice(service)
        key = await _key(service)
        headers = {"Authorization": f"Bearer {key}"}
        text = (await service.http.get("/metrics", headers=headers)).text
        await asyncio.to_thread(_promtool, "check", "metrics", text=text)
        url = service.http.base_url
        async with _prometheus(tmp_path, f"{url.host}:{url.port}", key) as prometheus:
            await prometheus.until_ready()
            target = await prometheus.target()
            assert (target["health"], target["lastError"]) == ("up", "")
            ended = await prometheus.read("query", query="sum(crewcapture_runs_ended_total)")
            assert ended["result"][0]["value"][1] == "2"
            for expression in _as_queries(_OF_PANELS):
                await prometheus.read("query", query=expression)
            (group,) = (await prometheus.read("rules"))["groups"]
            assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in _RULES]
            assert {rule["lastError"] for rule in group["rules"] if "lastError" in rule} <= {""}
            assert {rule["state"] for rule in group["rules"]} == {"inactive"}


def _as_queries(expressions: list[str]) -> Iterator[str]:
    """The expressions with values for the dashboard's variables."""
    for expression in expressions:
        text = expression.replace("$job", "crew-capture").replace("$crew", ".*")
        text = text.replace("$__rate_interval", "5m")
        assert "$" not in text
        yield text


async def _run_twice(service: Running) -> None:
    key = await service.inside.api_keys.create("a user", "user")
    headers = {"Authorization": f"Bearer {key}"}
    for _ in range(2):
        response = await service.http.post("/api/run", json={}, headers=headers)
        assert response.status_code == 200, response.text


async def _key(service: Running) -> str:
    key: str = await service.inside.api_keys.create("prometheus", "metrics")
    return key
