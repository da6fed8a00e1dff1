"""`crew-capture demo`: the real service, one profile, three reports, nothing else left."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import click
from rich.console import Console

from app.cli.reports import first_sections, write_reports
from app.settings import Settings

_PROFILE = {
    "goal_type": "Extra Income",
    "time_commitment": "5-10 hrs/week",
    "budget_range": "$100 - $500",
    "interest_area": "Education",
    "sub_interest_area": "Online tutoring",
    "work_style": "Solo",
    "skill_strength": "Teaching / Explaining",
    "experience_summary": "Ten years as a maths teacher; I write my own worksheets.",
}
_START_SECONDS = 120
_LINES_OF_REPORT = 25
_NEXT = """\
The whole reports are in {folder}/.

  {command} run --interest-area Food
      a run of your own, in the terminal
  {command} serve
      the service on http://127.0.0.1:8000; /schema describes its API
  LLM_MODEL=openai/gpt-4o-mini LLM_API_KEY=KEY {command} run
      the same with a real model
  {command} doctor
      what works here, and how to fix the rest

docs/your-crew.md: your own crew, in five minutes."""


@click.command()
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    metavar="DIR",
    help="The folder for the reports.",
)
def demo(output_dir: Path) -> None:
    """Start the real service, run one profile through it, and leave only its reports."""
    sys.exit(_show(output_dir))


def _show(output_dir: Path) -> int:
    """Run the demonstration; returns the exit code."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="crew-capture-demo-") as scratch:
        port = _free_port()
        url = f"http://127.0.0.1:{port}"
        log = Path(scratch) / "service.log"
        with log.open("wb") as lines:
            service = subprocess.Popen(
                [sys.executable, "-m", "crew_capture", "serve"],
                cwd=scratch,  # without the caller's .env; all files are removed with the folder
                env=_environment(scratch, port),
                stdout=lines,
                stderr=subprocess.STDOUT,
            )
        try:
            text = "Starting the service; importing CrewAI takes some seconds"
            if not console.is_terminal:
                console.print(text)
            with console.status(text):
                started = _wait_until_ready(url, service)
            if not started:
                console.print("The service did not start:", log.read_text(), sep="\n")
                return 1
            console.print(f"The service is ready at {url}")
            with console.status("POST /api/run: three agents work on one profile"):
                started_at = time.perf_counter()
                answer = _post(f"{url}/api/run", _PROFILE)
            seconds = time.perf_counter() - started_at
            console.print(f"Run {answer['run_id']} lasted {seconds:.2f} s")
        finally:
            service.terminate()
            service.wait()
    for path in write_reports(output_dir, answer["outputs"]):
        sections = first_sections(path.read_text(encoding="utf-8"), _LINES_OF_REPORT)
        console.rule(str(path), align="left")
        console.print(f"{sections}\n", markup=False, highlight=False, soft_wrap=True)
    console.rule("What to try next", align="left")
    console.print(
        _NEXT.format(folder=output_dir, command=_command()),
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _command() -> str:
    """`crew-capture` as this process was started, from the working directory."""
    script = Path(sys.argv[0])
    if shutil.which("crew-capture") or script.name != "crew-capture":
        return "crew-capture"
    return str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(scratch: str, port: int) -> dict[str, str]:
    """The caller's environment without this service's settings, and the demo's own settings."""
    settings = {name.upper() for name in Settings.model_fields}
    return {name: value for name, value in os.environ.items() if name not in settings} | {
        "PORT": str(port),
        "DRAIN_SECONDS": "0",
        "TEMP_DIR": scratch,
    }


def _wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + _START_SECONDS
    while service.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health/ready"):  # noqa: S310 - our own http URL
                return True
        except URLError:
            time.sleep(0.1)
    return False


def _post(url: str, body: dict[str, str]) -> Any:
    request = urllib.request.Request(  # noqa: S310 - our own http URL
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        return json.load(response)
