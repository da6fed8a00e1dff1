"""The commands, as an operator runs them: in a folder of their own, by their own process.

`run` and `demo`, which itself starts `serve`, are started anew; the others are forks.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import RunCommand

REPORTS = ["profile_analysis", "startup_ideas_research", "personalized_recommendations"]


def test_run_writes_the_reports_into_the_given_folder(
    new_crew_capture: RunCommand, tmp_path: Path
) -> None:
    result = new_crew_capture("run", "--interest-area", "Education", "--output-dir", "out")
    assert result.returncode == 0, result.stderr
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(REPORTS)
    assert [Path(line).stem for line in result.stdout.split()] == REPORTS
    for name in REPORTS:
        assert name in result.stderr  # the progress
        assert (tmp_path / "out" / f"{name}.md").read_text().startswith("#")


def test_run_prints_json_and_nothing_else(crew_capture: RunCommand) -> None:
    result = crew_capture("run", "--json", "--goal-type", "Side project")
    assert result.returncode == 0, result.stderr
    run = json.loads(result.stdout)
    assert run["status"] == "succeeded"
    assert run["inputs"]["goal_type"] == "Side project"
    assert list(run["outputs"]) == REPORTS


def test_run_leaves_nothing_in_the_backend(crew_capture: RunCommand, tmp_path: Path) -> None:
    assert crew_capture("run").returncode == 0
    assert list((tmp_path / "idea_crew_outputs").glob("*.md")) == []


def test_a_crew_of_ones_own_is_run_and_examined(
    crew_capture: RunCommand, classic_project: Path, tmp_path: Path
) -> None:
    (tmp_path / "crews.toml").write_text("[research.inputs.current_year]\ntype = 'integer'\n")
    ours = {"CREWS": f"research={classic_project}", "CREWS_FILE": "crews.toml"}
    given = ["--input", "topic=tea = leaves", "--input", "current_year=2026"]
    result = crew_capture("run", "--json", "--crew", "research", *given, **ours)
    assert result.returncode == 0, result.stderr
    run = json.loads(result.stdout)
    assert run["inputs"] == {"topic": "tea = leaves", "current_year": 2026}
    assert "tea = leaves" in run["outputs"]["research_task"]
    assert not list(tmp_path.rglob("report.md"))  # its output_file
    examined = crew_capture("doctor", **ours)
    assert "research: 2 tasks, execution mode plan" in examined.stdout, examined.stdout


def test_a_crew_that_cannot_be_loaded_is_one_line_of_error(crew_capture: RunCommand) -> None:
    result = crew_capture("run", "--crew", "poem", CREWS="poem=nowhere")
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("crew-capture: CREWS=poem=nowhere: is neither a folder nor")


def test_run_refuses_a_wrong_input_by_name(crew_capture: RunCommand) -> None:
    result = crew_capture("run", "--goal-type", "x" * 4001)
    assert result.returncode == 1
    assert "goal_type: 4001 characters" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_setting_is_one_line(crew_capture: RunCommand) -> None:
    result = crew_capture("serve", WORKERS="none")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "crew-capture: WORKERS=none: input should be a valid integer, "
        "unable to parse string as an integer"
    ]


def test_sweep_removes_the_old_and_zero_removes_all(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    assert crew_capture("sweep").returncode == 0
    directory = tmp_path / "idea_crew_outputs"
    old, new = (directory / f"{digit * 32}_1700000000_report.md" for digit in "ab")
    for path in (old, new):
        path.write_text("left behind")
    os.utime(old, (1_700_000_000, 1_700_000_000))
    result = crew_capture("sweep", "--max-age-hours", "0.5")
    assert result.returncode == 0
    assert "1 removed" in result.stdout
    assert f"Cleaned up 1 old temp file(s) (0.0 MB) from {directory}" in result.stderr
    assert [path.name for path in directory.glob("*.md")] == [new.name]
    assert "1 removed" in crew_capture("sweep", "--max-age-hours", "0").stdout
    assert list(directory.glob("*.md")) == []


def test_the_operations_guides_entry_sweeps(crew_capture: RunCommand, tmp_path: Path) -> None:
    assert crew_capture("sweep").returncode == 0
    left = tmp_path / "idea_crew_outputs" / f"{'a' * 32}_1700000000_report.md"
    left.write_text("left behind")
    code = (
        "import asyncio\n"
        "from app.utils.output_manager import cleanup_old_temp_files\n"
        "async def main(): return cleanup_old_temp_files(max_age_hours=0)\n"
        "print(asyncio.run(main()).removed, cleanup_old_temp_files().removed)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"TEMP_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout.split() == ["1", "0"], result.stderr
    assert not left.exists()


def test_doctor_finds_everything_well(crew_capture: RunCommand) -> None:
    result = crew_capture("doctor")
    assert result.returncode == 0, result.stdout
    for part in ("settings", "database", "backend", "libraries", "crews", "model"):
        assert f"✓ {part}" in result.stdout


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"WORKERS": "0"}, "settings"),
        ({"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/x"}, "database"),
        ({"TEMP_DIR": "/nowhere/at/all"}, "backend"),
        ({"LLM_MODEL": "openai/x", "LLM_BASE_URL": "http://127.0.0.1:1/v1"}, "model"),
    ],
)
def test_doctor_says_what_to_fix(
    crew_capture: RunCommand, wrong: dict[str, str], part: str
) -> None:
    result = crew_capture("doctor", **wrong, LLM_API_KEY="secret", LLM_TIMEOUT_SECONDS="5")
    assert result.returncode == 1
    assert f"✗ {part}" in result.stdout
    assert "fix:" in result.stdout
    assert "secret" not in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_demo_leaves_nothing_but_its_reports(new_crew_capture: RunCommand, tmp_path: Path) -> None:
    result = new_crew_capture("demo", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert sorted(path.stem for path in (tmp_path / "demo").iterdir()) == sorted(REPORTS)
    for name in REPORTS:
        assert f"{name}.md" in result.stdout


def test_keys_are_made_listed_and_revoked(crew_capture: RunCommand) -> None:
    made = crew_capture("keys", "create", "search team", "--role", "admin")
    assert made.returncode == 0, made.stderr
    prefix, key_id, secret = made.stdout.strip().split("_", 2)
    assert prefix == "cc"
    listed = crew_capture("keys", "list").stdout
    assert key_id in listed
    assert "search team" in listed
    assert secret not in listed
    assert crew_capture("keys", "revoke", key_id).returncode == 0
    refused = crew_capture("keys", "revoke", "nobody")
    assert refused.returncode == 1
    assert "keys list" in refused.stderr
