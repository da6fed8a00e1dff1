"""The Helm chart: Helm's own checks, and that its commands and settings exist."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.runs import RunStatus
from app.settings import load_settings
from app.telemetry import metrics
from tests.deploy.test_files import check_command

helm = pytest.importorskip("helm_python", reason="Helm has no wheel for this platform")

CHART = Path(__file__).parents[2] / "deploy/helm"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"worker": {"autoscaling": {"enabled": False}, "crews": "news=/srv/news"}},
    {
        "worker": {"autoscaling": {"prometheus": "http://prometheus:9090"}},
        "networkPolicy": {
            "clients": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}],
            "monitoring": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
        },
    },
    {"migrations": {"enabled": False}, "networkPolicy": {"enabled": False}},
]


def _manifests(values: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart makes of the values, by kind and name."""
    with helm.Chart.load(str(CHART)) as chart:
        rendered = chart.render(dict(values), name="demo", namespace="crews")
    parts = [part for text in rendered.values() for part in yaml.safe_load_all(text) if part]
    return {(part["kind"], part["metadata"]["name"]): part for part in parts}


def _container(manifests: Mapping[tuple[str, str], dict[str, Any]], role: str) -> dict[str, Any]:
    (container,) = manifests["Deployment", f"demo-{role}"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


@pytest.mark.parametrize("values", VARIANTS)
def test_the_chart_passes_helm_lint(values: dict[str, Any]) -> None:
    report = helm.lint(str(CHART), values, strict=True)
    assert report["errors"] == []
    assert [one for one in report["messages"] if one["severity"] > 1] == []


@pytest.mark.parametrize("values", VARIANTS)
def test_manifests_match_the_schemas_of_kubernetes(values: dict[str, Any]) -> None:
    manifests = _manifests(values)
    ours = [one for (kind, _), one in manifests.items() if kind != "ScaledObject"]
    assert len(ours) >= 5
    for manifest in ours:
        for version in ("1.25", "1.31", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_that_is_wrong_would_be_found() -> None:
    job = _manifests({})["Job", "demo-migrations"]
    job["spec"]["backOffLimit"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="backOffLimit"):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("role", ["accepting", "worker"])
def test_pods_have_commands_and_settings_that_exist(
    values: dict[str, Any], role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = _container(_manifests(values), role)
    check_command(container["args"])
    settings = {one["name"].lower(): one["value"] for one in container["env"]}
    monkeypatch.setenv("WORKERS", "1")
    loaded = load_settings(_env_file=None, **settings)
    assert settings.keys() <= loaded.model_fields_set
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "http": loaded.port,
        "metrics": loaded.metrics_port,
    }


@pytest.mark.parametrize("values", VARIANTS)
@pytest.mark.parametrize("role", ["accepting", "worker"])
def test_selectors_find_the_pods_and_a_stop_has_enough_time(
    values: dict[str, Any], role: str
) -> None:
    manifests = _manifests(values)
    deployment = manifests["Deployment", f"demo-{role}"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    budget = manifests["PodDisruptionBudget", f"demo-{role}"]["spec"]
    assert budget["selector"]["matchLabels"] == labels
    if role == "accepting":
        assert manifests["Service", "demo"]["spec"]["selector"] == labels
    settings = {one["name"]: one["value"] for one in _container(manifests, role)["env"]}
    stop = float(settings["SHUTDOWN_SECONDS"]) + float(settings.get("DRAIN_SECONDS", 0))
    assert deployment["template"]["spec"]["terminationGracePeriodSeconds"] > stop


def test_workers_are_scaled_by_the_autoscaler_or_by_the_number_of_replicas() -> None:
    by_cpu, fixed, by_runs, _ = (_manifests(values) for values in VARIANTS)
    for kind, scaled in (("HorizontalPodAutoscaler", by_cpu), ("ScaledObject", by_runs)):
        target = scaled[kind, "demo-worker"]["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in scaled
        assert "replicas" not in scaled["Deployment", "demo-worker"]["spec"]
    assert ("HorizontalPodAutoscaler", "demo-worker") not in {*fixed, *by_runs}
    assert ("ScaledObject", "demo-worker") not in {*fixed, *by_cpu}
    assert fixed["Deployment", "demo-worker"]["spec"]["replicas"] == 2


def test_workers_are_scaled_by_metrics_that_exist() -> None:
    triggers = _manifests(VARIANTS[2])["ScaledObject", "demo-worker"]["spec"]["triggers"]
    queries = [one["metadata"]["query"] for one in triggers if one["type"] == "prometheus"]
    assert len(queries) == 2
    for query, status in zip(queries, (RunStatus.QUEUED, RunStatus.RUNNING), strict=True):
        assert f'{{job="crew-capture",status="{status}"}}' in query
        assert query.removeprefix("max(").partition("{")[0] == metrics.RUNS.name


def test_a_job_migrates_the_database_before_the_pods_are_replaced() -> None:
    manifests = _manifests({})
    job = manifests["Job", "demo-migrations"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_command(container["args"])
    services = _container(manifests, "worker")
    for same in ("image", "envFrom", "securityContext", "volumeMounts"):
        assert container[same] == services[same]
    assert pod["restartPolicy"] == "Never"
    assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe"} & container.keys()


def test_pods_write_to_one_tmpfs_only() -> None:
    for manifest in _manifests({}).values():
        if manifest["kind"] in {"Deployment", "Job"}:
            pod = manifest["spec"]["template"]["spec"]
            assert pod["volumes"] == [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]
            assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_network_policy_selects_the_pods_and_permits_what_they_need() -> None:
    manifests = _manifests(VARIANTS[2])
    everything = manifests["NetworkPolicy", "demo"]["spec"]
    for role in ("accepting", "worker"):
        labels = manifests["Deployment", f"demo-{role}"]["spec"]["template"]["metadata"]["labels"]
        assert everything["podSelector"]["matchLabels"].items() <= labels.items()
    peers = VARIANTS[2]["networkPolicy"]
    assert everything["ingress"] == [{"ports": [{"port": "metrics"}], "from": peers["monitoring"]}]
    ports = {one["port"] for rule in everything["egress"] for one in rule["ports"]}
    assert ports == {53, 443, 4222, 5432}
    accepting = manifests["NetworkPolicy", "demo-accepting"]["spec"]
    selected = manifests["Deployment", "demo-accepting"]["spec"]["template"]["metadata"]["labels"]
    assert accepting["podSelector"]["matchLabels"] == selected
    assert accepting["ingress"] == [{"ports": [{"port": "http"}], "from": peers["clients"]}]


@pytest.mark.parametrize(
    "values",
    [
        {"worker": {"minReplicas": 0}},
        {"worker": {"minReplica": 2}},
        {"settings": {"llm_model": "offline"}},
        {"settings": {"SHUTDOWN_SECONDS": 300}},
        {"secretName": ""},
        {"networkPolicy": {"egressPorts": [0]}},
        {"worker": {"autoscaling": {"prometheus": "prometheus:9090"}}},
    ],
)
def test_values_that_are_wrong_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError, match="don't meet the specifications"):
        _manifests(values)
