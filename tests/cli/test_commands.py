"""The commands, as an operator runs them: in a folder of their own, by their own process.

`run` and `demo`, which itself starts `serve`, are started anew; the others are forks.
"""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from app.cli.reports import first_sections
from app.db import Database, newest_schema
from app.schedules import Misfire, Overlap, Schedule
from app.schedules.repository import ScheduleRepository
from tests.commands import Command, ForkServer, RunCommand

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
        written = (tmp_path / "out" / f"{name}.md").read_text()
        assert written.startswith("#")
        assert written.endswith("\n")
        assert not written.endswith("\n\n")
    assert "| Interest | Education |" in (tmp_path / "out" / f"{REPORTS[0]}.md").read_text()


def test_run_prints_json_and_nothing_else(crew_capture: RunCommand) -> None:
    result = crew_capture("run", "--json", "--goal-type", "Side project")
    assert result.returncode == 0, result.stderr
    run = json.loads(result.stdout)
    assert run["status"] == "succeeded"
    assert run["inputs"]["goal_type"] == "Side project"
    assert "goal_type" not in run["assumed_inputs"]
    assert len(run["assumed_inputs"]) == 7
    assert list(run["outputs"]) == REPORTS


def test_run_leaves_a_run_with_a_time_to_a_service(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    at = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    result = crew_capture("run", "--not-before", at, "--priority", "5")
    assert result.returncode == 0, result.stderr
    (run_id,) = result.stdout.split()
    shown = json.loads(crew_capture("runs", "show", run_id, "--json").stdout)
    assert (shown["status"], shown["attempt"], shown["priority"]) == ("queued", 0, 5)
    assert datetime.fromisoformat(shown["not_before"]) == datetime.fromisoformat(at)
    assert "not_before: " in crew_capture("runs", "show", run_id).stdout
    assert crew_capture("runs", "cancel", run_id).returncode == 0


def test_run_refuses_a_time_without_a_zone_and_a_priority_alone(crew_capture: RunCommand) -> None:
    result = crew_capture("run", "--not-before", "2030-01-31T08:00:00")
    assert result.returncode == 2
    assert "is no time with a zone, such as 2030-01-31T08:00:00Z" in result.stderr
    result = crew_capture("run", "--priority", "5")
    assert result.returncode == 2
    assert "use it with --not-before" in result.stderr


def test_schedules_are_listed_shown_paused_run_and_deleted(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    def done(*words: str) -> str:
        result = crew_capture("schedules", *words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    assert done("list").startswith("SCHEDULE ")
    schedule = Schedule(
        schedule_id=uuid4(),
        name="ideas",
        crew="idea",
        inputs={"interest_area": "Food"},
        cron="30 9 * * *",
        time_zone="Europe/Berlin",
        misfire=Misfire.SKIP,
        overlap=Overlap.ALLOW,
        created_at=datetime.now(UTC),
    )

    async def add() -> None:
        database = Database(f"sqlite:///{tmp_path}/crew_capture.db")
        await ScheduleRepository(database).add(schedule)
        await database.aclose()

    asyncio.run(add())
    id_ = str(schedule.schedule_id)
    assert done("list").splitlines()[1].startswith(id_)
    assert done("resume", id_).startswith(f"schedule {id_} is due next at 2")
    assert "\nnext_due: 2" in done("show", id_)
    assert json.loads(done("show", id_, "--json"))["inputs"] == {"interest_area": "Food"}
    lines = done("times", id_, "--count", "2").splitlines()
    assert len(lines) == 2
    assert all(" 09:30 CE" in line for line in lines)
    assert done("run", id_) == f"schedule {id_} is due now\n"
    assert done("pause", id_) == f"schedule {id_} is paused\n"
    assert "paused" in done("list")
    refused = crew_capture("schedules", "run", id_)
    assert refused.returncode == 1
    assert "is paused; resume it first" in refused.stderr
    assert done("delete", id_) == f"schedule {id_} is deleted\n"
    unknown = crew_capture("schedules", "show", id_)
    assert unknown.returncode == 1
    assert f"no schedule has the id {id_}" in unknown.stderr


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


def test_run_names_the_crews_that_are_available(crew_capture: RunCommand) -> None:
    result = crew_capture("run", "--crew", "ideas")
    assert result.returncode == 1
    assert result.stderr == "crew-capture: no crew is named ideas; available are idea\n"


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


def test_a_misspelt_setting_is_named(crew_capture: RunCommand, tmp_path: Path) -> None:
    """Other variables, such as keys of providers, are none of ours."""
    (tmp_path / ".env").write_text("llm_modle=x\nLLM_MODEL=offline\nOPENAI_API_KEY=x\nHOSTS=x\n")
    result = crew_capture("runs", "list", DATABSE_URL="x", OTEL_SERVICE_NAME="x")
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        "crew-capture: .env: llm_modle is no setting; did you mean LLM_MODEL?",
        "crew-capture: environment: DATABSE_URL is no setting; did you mean DATABASE_URL?",
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


def test_migrate_creates_the_tables_and_may_be_repeated(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path / 'new.db'}"
    for _ in range(2):
        result = crew_capture("migrate", DATABASE_URL=database)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"The database has the schema {newest_schema()}.\n"
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute("SELECT count(*) FROM user_runs").fetchone() == (0,)


def test_migrate_says_why_it_failed(crew_capture: RunCommand, tmp_path: Path) -> None:
    result = crew_capture("migrate", DATABASE_URL=f"sqlite:///{tmp_path}/missing/new.db")
    assert result.returncode == 1
    assert result.stderr.startswith("crew-capture: the database is unavailable: ")


def test_doctor_finds_everything_well(crew_capture: RunCommand) -> None:
    result = crew_capture("doctor")
    assert result.returncode == 0, result.stdout
    for part in ("settings", "database", "backend", "queue", "libraries", "crews", "model"):
        assert f"✓ {part}" in result.stdout
    assert "\x1b" not in result.stdout  # no colours where no terminal is


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"WORKERS": "0"}, "settings"),
        ({"DATABASE_URL": "postgresql://u:secret@127.0.0.1:1/x"}, "database"),
        ({"TEMP_DIR": "/nowhere/at/all"}, "backend"),
        ({"QUEUE_URL": "nats://u:secret@127.0.0.1:1"}, "queue"),
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
    examined = [
        line.split(":")[0].split()[1] for line in result.stdout.splitlines() if line[0] != " "
    ]
    assert {"settings", "database", "backend", "libraries", "crews", "model"} <= set(examined)
    assert "secret" not in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_doctor_examines_the_model_if_a_crew_is_broken(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(
        "raise ValueError('a fault of the crew')\nfrom crewai import Crew\ncrew = Crew()\n"
    )
    result = crew_capture("doctor", CREWS=f"broken={tmp_path / 'broken.py'}")
    assert result.returncode == 1
    assert "✓ model: offline answers" in result.stdout
    assert "✗ crews: CREWS=broken=" in result.stdout
    assert "a fault of the crew" in result.stdout


def test_demo_leaves_nothing_but_its_reports(new_crew_capture: RunCommand, tmp_path: Path) -> None:
    result = new_crew_capture("demo", TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert sorted(path.stem for path in (tmp_path / "demo").iterdir()) == sorted(REPORTS)
    for name in REPORTS:
        assert f"{name}.md" in result.stdout
        report = (tmp_path / "demo" / f"{name}.md").read_text()
        assert first_sections(report, 25) in result.stdout
    assert "crew-capture run --interest-area" in result.stdout  # what to try next


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


def test_limits_of_a_key_are_set_and_removed(crew_capture: RunCommand) -> None:
    key = crew_capture("keys", "create", "team", "--max-cost", "0.5", "--runs-per-day", "7")
    key_id = key.stdout.split("_")[1]
    assert "team  (runs_per_day=7, max_cost=0.5)" in crew_capture("keys", "list").stdout
    changed = crew_capture(
        "keys", "set", key_id, "--cost-per-day", "2.5", "--max-tokens", "9", "--unset", "max-cost"
    )
    assert changed.returncode == 0, changed.stderr
    limits = "(runs_per_day=7, cost_per_day=2.5, max_tokens=9)"
    assert f"team  {limits}" in crew_capture("keys", "list").stdout
    unknown = crew_capture("keys", "set", "nobody", "--max-tokens", "9")
    assert (unknown.returncode, "no key has the id nobody" in unknown.stderr) == (1, True)
    assert crew_capture("keys", "set", key_id).returncode == 2
    wrong = crew_capture("keys", "set", key_id, "--max-cost", "0")
    assert wrong.returncode == 2
    assert "not an amount in USD" in wrong.stderr


def test_usage_is_printed_as_a_table(crew_capture: RunCommand, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[offline]\ninput = 0\noutput = 0\n")
    assert crew_capture("run").returncode == 0
    unknown = crew_capture("usage", "--by", "crew", "--by", "model").stdout.splitlines()
    heading = ["CREW", "MODEL", "RUNS", "CALLS", "UNPRICED CALLS", "INPUT TOKENS"]
    heading += ["CACHED TOKENS", "OUTPUT TOKENS", "COST"]
    assert re.split("  +", unknown[0]) == heading
    assert [line.split() for line in unknown[1:]] == [
        ["idea", "offline", "1", "3", "3", "0", "0", "0", "-"]
    ]
    shown = crew_capture("run", "--json", PRICES_FILE=str(prices))
    assert json.loads(shown.stdout)["cost"] == 0
    known = crew_capture("usage", "--by", "crew", "--crew", "idea").stdout.splitlines()
    assert [line.split() for line in known[1:]] == [
        ["idea", "2", "6", "3", "0", "0", "0", "0.000000"]
    ]
    assert len(crew_capture("usage", "--to", "2020-01-01").stdout.splitlines()) == 1


def test_doctor_names_models_without_a_price(crew_capture: RunCommand, tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[gpt-4o]\ninput = 1\noutput = 1\n")
    result = crew_capture("doctor", PRICES_FILE=str(prices))
    assert result.returncode == 1
    assert "✓ prices: 1 price(s)" in result.stdout
    assert "✗ prices: crew idea calls offline, which has no price" in result.stdout
    prices.write_text("[gpt-4o]\ninput = 1\n")
    result = crew_capture("doctor", PRICES_FILE=str(prices))
    assert "✗ prices: PRICES_FILE=" in result.stdout
    assert '["gpt-4o"] output: field required' in result.stdout


def test_each_folder_is_an_installation_of_its_own(
    new_crew_capture: RunCommand, tmp_path: Path
) -> None:
    """A second folder, a second clone, or a new database file need no setting to start."""
    ours = {"TMPDIR": str(tmp_path), "TEMP_DIR": ""}
    for database in ("one.db", "two.db"):
        url = f"sqlite:///{tmp_path}/{database}"
        swept = new_crew_capture("sweep", DATABASE_URL=url, **ours)
        assert swept.returncode == 0, swept.stderr
    assert list(tmp_path.glob("idea_crew_outputs*")) == [], "empty folders are removed"


def test_run_is_not_blocked_by_a_location_of_another_installation(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    assert crew_capture("sweep", DATABASE_URL=f"sqlite:///{tmp_path}/first.db").returncode == 0
    result = crew_capture("run", "--json", DATABASE_URL=f"sqlite:///{tmp_path}/second.db")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["status"] == "succeeded"
    assert "belongs to another database: using memory" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_run_at_once(
    fork_server: ForkServer, tmp_path: Path, number: signal.Signals
) -> None:
    command = _start_slow_run(fork_server, tmp_path)
    command.send_signal(number)
    assert command.wait(20) == 130
    assert "is cancelled" in (tmp_path / "errors").read_text()
    with sqlite3.connect(tmp_path / "crew_capture.db") as database:
        assert database.execute("SELECT status FROM user_runs").fetchall() == [("cancelled",)]


def test_a_signal_cancels_a_run_that_is_just_accepted(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    command = _start_slow_run(fork_server, tmp_path, _INTERRUPTED_SUBMISSION)
    assert command.wait(20) == 130
    with sqlite3.connect(tmp_path / "crew_capture.db") as database:
        assert database.execute("SELECT status FROM user_runs").fetchall() == [("cancelled",)]


def test_a_one_shot_run_claims_no_other_run(
    fork_server: ForkServer, crew_capture: RunCommand, tmp_path: Path
) -> None:
    killed = _start_slow_run(fork_server, tmp_path)
    killed.kill()
    killed.wait(20)
    url = f"sqlite:///{tmp_path}/crew_capture.db"
    with sqlite3.connect(tmp_path / "crew_capture.db") as database:
        database.execute("UPDATE user_runs SET lease_until = '2000-01-01 00:00:00'")
    (tmp_path / "called").unlink()
    result = crew_capture("run", "--json", CREWS="slow=slow_crew:build", DATABASE_URL=url)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "called").exists()
    with sqlite3.connect(tmp_path / "crew_capture.db") as database:
        runs = dict(database.execute("SELECT crew, status FROM user_runs"))
    assert runs == {"slow": "running", "idea": "succeeded"}


# Ctrl-C after the commit, and before the command knows the run.
_INTERRUPTED_SUBMISSION = """
import os
import signal
from app.runs.service import RunService

submit = RunService.submit

async def interrupted(*args, **kwargs):
    run = await submit(*args, **kwargs)
    while not Path("called").exists():
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.1)
    return run

RunService.submit = interrupted
"""

_SLOW_CREW = """
import asyncio
from pathlib import Path
from crewai import Agent, BaseLLM, Crew, Task

class Slow(BaseLLM):
    def call(self, *args, **kwargs):
        raise NotImplementedError
    async def acall(self, *args, **kwargs):
        Path("called").touch()
        await asyncio.Event().wait()

def build():
    agent = Agent(role="r", goal="g", backstory="b", llm=Slow(model="slow"))
    task = Task(description="d", expected_output="e", agent=agent)
    return Crew(agents=[agent], tasks=[task])
"""


def _start_slow_run(fork_server: ForkServer, folder: Path, more: str = "") -> Command:
    """`crew-capture run` of a crew whose model never answers, once that is called.

    `more` is further code of the crew's module.
    """
    (folder / "slow_crew.py").write_text(_SLOW_CREW + more)
    environment = {**os.environ, "CREWS": "slow=slow_crew:build", "TEMP_DIR": str(folder)}
    command = fork_server.launch(
        ["app.cli", "run", "--crew", "slow"],
        folder,
        environment,
        folder / "output",
        folder / "errors",
    )
    while not (folder / "called").exists():
        assert command.poll() is None, (folder / "errors").read_text()
        time.sleep(0.02)
    return command


def test_runs_are_listed_shown_cancelled_and_retried(
    crew_capture: RunCommand, tmp_path: Path
) -> None:
    run = json.loads(crew_capture("run", "--json").stdout)
    listed = crew_capture("runs", "list", "--status", "succeeded", "--crew", "idea").stdout
    assert run["run_id"] in listed
    assert run["run_id"] not in crew_capture("runs", "list", "--status", "failed").stdout
    shown = crew_capture("runs", "show", run["run_id"])
    assert "status: succeeded" in shown.stdout
    as_json = json.loads(crew_capture("runs", "show", "--json", run["run_id"]).stdout)
    assert as_json["outputs"] == run["outputs"]
    with_calls = crew_capture("runs", "show", "--calls", run["run_id"]).stdout
    called = with_calls.partition("CALLED\n")[2].splitlines()
    assert [line.split()[-3:] for line in called] == [
        [name, "model", "offline"] for name in REPORTS
    ]
    calls = json.loads(crew_capture("runs", "show", "--calls", "--json", run["run_id"]).stdout)
    assert [call["task"] for call in calls["calls"]] == REPORTS
    refused = crew_capture("runs", "cancel", run["run_id"])
    assert refused.returncode == 1
    assert "is succeeded already" in refused.stderr
    with sqlite3.connect(tmp_path / "crew_capture.db") as database:
        database.execute("UPDATE user_runs SET status = 'running', finished_at = NULL")
    cancelled = crew_capture("runs", "cancel", run["run_id"])
    assert cancelled.returncode == 0, cancelled.stderr
    assert "status: cancelled" in crew_capture("runs", "show", run["run_id"]).stdout
    retried = crew_capture("runs", "retry", run["run_id"])
    assert retried.returncode == 0, retried.stderr
    assert "status: queued" in crew_capture("runs", "show", run["run_id"]).stdout
    again = crew_capture("runs", "retry", run["run_id"])
    assert again.returncode == 1
    assert "is queued: only a failed or cancelled run is retried" in again.stderr
    for verb in ("show", "retry"):
        unknown = crew_capture("runs", verb, "0" * 32)
        assert unknown.returncode == 1
        assert "runs list" in unknown.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_one_line(crew_capture: RunCommand, workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = crew_capture("serve", "--port", str(port), WORKERS=workers)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"crew-capture: can't listen on 127.0.0.1:{port}: another program")


@pytest.mark.parametrize("command", ["serve", "run", "keys list", "sweep"])
def test_a_database_that_is_away_is_a_line_with_the_fix(
    crew_capture: RunCommand, tmp_path: Path, command: str
) -> None:
    missing = tmp_path / "missing"
    words = [*command.split(), *(["--port", "0"] if command == "serve" else [])]
    result = crew_capture(*words, DATABASE_URL=f"sqlite:///{missing}/runs.db")
    assert result.returncode != 0
    assert f"the folder {missing} does not exist: create it" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("opnai/gpt-4o", "no provider is named opnai; did you mean openai/gpt-4o?"),
        ("openai/gpt-4o", "its API key is empty; set it in LLM_API_KEY"),
    ],
)
def test_a_wrong_model_is_one_line(crew_capture: RunCommand, model: str, expected: str) -> None:
    for command in ("run", "doctor"):
        result = crew_capture(command, LLM_MODEL=model, OPENAI_API_KEY="")
        assert result.returncode == 1
        assert f"LLM_MODEL={model}: {expected}" in result.stdout + result.stderr
        assert "Traceback" not in result.stdout + result.stderr


def test_a_crew_that_names_a_model_without_a_key(crew_capture: RunCommand, tmp_path: Path) -> None:
    (tmp_path / "named.py").write_text(_SLOW_CREW.replace('Slow(model="slow")', '"openai/gpt-4o"'))
    ours = {"CREWS": "named=named:build"}
    for command in (["run", "--crew", "named"], ["doctor"]):
        result = crew_capture(*command, **ours)
        assert result.returncode == 1
        assert "crew named names the model openai/gpt-4o: OPENAI_API_KEY is required" in (
            result.stdout + result.stderr
        )
        assert "replace_models = true under [named]" in result.stdout + result.stderr
    (tmp_path / "crews.toml").write_text("[named]\nreplace_models = true\n")
    for command in (["run", "--crew", "named"], ["doctor"]):
        result = crew_capture(*command, **ours, CREWS_FILE="crews.toml")
        assert result.returncode == 0, result.stdout + result.stderr
