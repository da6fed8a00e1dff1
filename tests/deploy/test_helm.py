"""The Helm chart: Helm's own checks, and that its commands and settings exist."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import load_settings
from tests.deploy.test_files import check_command

helm = pytest.importorskip("helm_python", reason="Helm has no wheel for this platform")

CHART = Path(__file__).parents[2] / "deploy/helm"
VARIANTS: list[dict[str, Any]] = [
    {},
    {"worker": {"autoscaling": {"enabled": False}, "crews": "news=/srv/news"}},
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
    scaled, fixed = (_manifests(values) for values in VARIANTS)
    target = scaled["HorizontalPodAutoscaler", "demo-worker"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in scaled
    assert "replicas" not in scaled["Deployment", "demo-worker"]["spec"]
    assert ("HorizontalPodAutoscaler", "demo-worker") not in fixed
    assert fixed["Deployment", "demo-worker"]["spec"]["replicas"] == 2


@pytest.mark.parametrize(
    "values",
    [
        {"worker": {"minReplicas": 0}},
        {"worker": {"minReplica": 2}},
        {"settings": {"llm_model": "offline"}},
        {"settings": {"SHUTDOWN_SECONDS": 300}},
        {"secretName": ""},
    ],
)
def test_values_that_are_wrong_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError, match="don't meet the specifications"):
        _manifests(values)
