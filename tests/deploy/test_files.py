"""The files in `deploy/` name commands, settings and files that exist."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from app.cli.main import cli
from app.settings import load_settings

_DEPLOY = Path(__file__).parents[2] / "deploy"
_COMPOSE: dict[str, Any] = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())
_SERVICES: dict[str, Any] = _COMPOSE["services"]
_UNITS = sorted((_DEPLOY / "systemd").glob("*.service"))


def check_command(words: list[str]) -> None:
    name, *arguments = words
    command = cli.commands[name]
    command.make_context(name, arguments)  # raises for an unknown option


@pytest.mark.parametrize("name", ["accepting", "worker"])
def test_the_composed_services_have_commands_and_settings_that_exist(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_command(_SERVICES[name]["command"])
    environment = _SERVICES[name]["environment"]
    settings = {key.lower(): value for key, value in environment.items() if "AWS" not in key}
    filled = {
        key: re.sub(r"\$\{\w+:(\?|-(\w*))\}", lambda found: found[2] or "x", value)
        for key, value in settings.items()
    }
    monkeypatch.setenv("WORKERS", "1")
    loaded = load_settings(**filled)
    assert filled.keys() <= loaded.model_fields_set


def test_the_composition_matches_the_schema_of_compose_files(tmp_path: Path) -> None:
    assert _check_composition(_DEPLOY / "compose.yaml") == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(yaml.safe_dump({"services": {"worker": {"tmps": []}}}))
    assert _check_composition(wrong) == 1


def _check_composition(file: Path) -> int:
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run([sys.executable, *command], check=False, stdout=subprocess.DEVNULL)
    return done.returncode


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this platform")
    command = [hadolint, _DEPLOY / "Dockerfile"]
    found = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_runs_as_another_user_than_root_and_is_checked() -> None:
    lines = (_DEPLOY / "Dockerfile").read_text().splitlines()
    (entrypoint,) = (line.removeprefix("ENTRYPOINT ") for line in lines if "ENTRYPOINT" in line)
    (command,) = (line.removeprefix("CMD ") for line in lines if line.startswith("CMD"))
    assert json.loads(entrypoint) == ["crew-capture"]
    check_command(json.loads(command))
    (user,) = (line.removeprefix("USER ") for line in lines if line.startswith("USER"))
    assert int(user) > 0
    assert any("/health/live" in line for line in lines if line.startswith("HEALTHCHECK"))


def test_services_write_to_one_tmpfs_only() -> None:
    for name in ("accepting", "worker"):
        assert _SERVICES[name]["read_only"] is True
        assert _SERVICES[name]["tmpfs"] == ["/tmp"]  # noqa: S108 - in a container


def test_files_that_services_mount_exist() -> None:
    mounted = [
        volume.split(":")[0]
        for service in _SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    ]
    assert len(mounted) == 5
    for path in mounted:
        assert (_DEPLOY / path).is_file(), path


def test_prometheus_scrapes_the_job_that_the_alerts_name() -> None:
    scraped = yaml.safe_load((_DEPLOY / "prometheus.yaml").read_text())
    (job,) = scraped["scrape_configs"]
    alerts = (_DEPLOY.parent / "docs/monitoring/alerts.yaml").read_text()
    assert f'job="{job["job_name"]}"' in alerts
    (names,) = job["dns_sd_configs"]
    assert names["names"] == ["accepting", "worker"]
    assert str(names["port"]) == _SERVICES["worker"]["environment"]["METRICS_PORT"]


@pytest.mark.parametrize("unit", _UNITS, ids=lambda unit: unit.name)
def test_units_start_commands_that_exist(unit: Path) -> None:
    found = re.search(r"^ExecStart=\S+/crew-capture (.+)$", unit.read_text(), re.MULTILINE)
    assert found is not None
    check_command(found[1].split())


def test_an_unknown_option_would_be_found() -> None:
    with pytest.raises(click.NoSuchOption):
        check_command(["serve", "--accept-none"])
