"""`crew-capture top`: frames of a running service, and errors in one line."""

import asyncio
import errno
import math
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from app.cli.scrape import ScrapeFailed, metrics_url, parse, scrape
from app.cli.top import frame
from app.telemetry import metrics
from app.telemetry.estimates import increase, quantile
from tests.commands import RunCommand
from tests.servers import free_ports
from tests.serving import Serve


def test_quantiles_are_those_of_prometheus() -> None:
    buckets = {0.1: 50.0, 0.5: 90.0, 1.0: 100.0, math.inf: 100.0}
    assert quantile(0.5, buckets) == pytest.approx(0.1)
    assert quantile(0.25, buckets) == pytest.approx(0.05)
    assert quantile(0.7, buckets) == pytest.approx(0.3)
    assert quantile(0.95, buckets) == pytest.approx(0.75)
    assert quantile(1.0, buckets) == pytest.approx(1.0)
    assert quantile(0.9, {0.1: 1.0, math.inf: 10.0}) == math.inf
    assert quantile(0.5, {0.1: 0.0, math.inf: 0.0}) is None
    assert quantile(0.5, {}) is None


def test_a_counter_that_fell_has_begun_again() -> None:
    assert increase(5, 3) == 2
    assert increase(3, 5) == 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a:9100", "http://a:9100/metrics"),
        ("https://a/", "https://a/metrics"),
        ("http://[::1]:1/metrics", "http://[::1]:1/metrics"),
        ("http://a/service/metrics", "http://a/service/metrics"),
    ],
)
def test_a_url_may_name_the_service_or_its_metrics(url: str, expected: str) -> None:
    assert metrics_url(url) == expected


@pytest.mark.parametrize("url", ["a:9100", "ftp://a", "file:///etc/passwd", "http://", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ScrapeFailed, match="is no URL of a service"):
        metrics_url(url)


def _text(runs: int, failed: int, slow: int) -> str:
    """A response after so many runs; the slow ones lasted between 5 and 10 s, others 0.1 s."""
    name = metrics.RUN_DURATION.name
    labels = 'crew="idea",status="succeeded"'
    return f"""\
# TYPE {name} histogram
{name}_bucket{{{labels},le="0.1"}} {runs - slow}
{name}_bucket{{{labels},le="5.0"}} {runs - slow}
{name}_bucket{{{labels},le="10.0"}} {runs}
{name}_bucket{{{labels},le="+Inf"}} {runs}
{name}_count{{{labels}}} {runs}
{name}_sum{{{labels}}} 1
# TYPE crewcapture_runs_ended counter
crewcapture_runs_ended_total{{crew="idea",status="failed",error_type="model_error"}} {failed}
crewcapture_runs_ended_total{{crew="idea",status="succeeded",error_type=""}} {runs}
# TYPE crewcapture_runs gauge
crewcapture_runs{{status="queued"}} 17
# TYPE crewcapture_database_up gauge
crewcapture_database_up 1
# TYPE crewcapture_storage_up gauge
crewcapture_storage_up{{backend="local"}} 1
crewcapture_storage_up{{backend="s3"}} 0
# TYPE crewcapture_stored_outputs_bytes gauge
crewcapture_stored_outputs_bytes{{backend="local"}} 1234567
"""


def _shown(*texts: str, seconds: float = 10.0, problem: str = "") -> dict[str, list[str]]:
    """The words of each line of a frame, by its first word."""
    scrapes = [parse(text, "u") for text in texts]
    scrapes = [type(one)(number * seconds, one.samples) for number, one in enumerate(scrapes)]
    console = Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(frame("http://a/metrics", scrapes, problem))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    return {line.split()[0]: line.split() for line in lines if line.strip()}


def test_a_frame_has_the_rates_and_times_since_the_frame_before() -> None:
    lines = _shown(_text(1000, 4, 0), _text(1020, 7, 20))
    # Only the 20 runs of the last 10 s count: all of them were slow.
    assert lines["runs"][:2] != ["runs", "in"]
    assert lines["runs"] == ["runs", "1,020", "2.0", "7.50", "9.75"]
    assert lines["runs:"] == ["runs:", "model_error", "7", "3"]
    assert lines["processes:"][-4:] == ["the", "last", "10", "s"]


def test_the_first_frame_has_those_since_the_start() -> None:
    lines = _shown(_text(1000, 4, 0))
    assert lines["runs"] == ["runs", "1,000", "-", "0.050", "0.095"]
    assert lines["runs:"] == ["runs:", "model_error", "4", "-"]
    assert lines["processes:"][-3:] == ["since", "the", "start"]


def test_a_restart_of_the_service_begins_at_zero() -> None:
    lines = _shown(_text(1000, 4, 0), _text(10, 0, 0))
    assert lines["runs"][:3] == ["runs", "10", "1.0"]


def test_a_frame_shows_backends_that_are_away_and_problems() -> None:
    lines = _shown(_text(1, 0, 0), _text(1, 0, 0), problem="it does not respond")
    assert lines["local"][:4] == ["local", "0", "1.2", "MB"]
    assert lines["s3"][:2] == ["s3", "away"]
    assert lines["it"] == ["it", "does", "not", "respond"]
    away = _shown(_text(1, 0, 0).replace("database_up 1", "database_up 0"))
    assert away["the"][:5] == ["the", "database", "is", "unavailable", "-"]


async def test_one_frame_is_printed_where_no_terminal_is(
    serve: Serve, crew_capture: RunCommand
) -> None:
    async with serve(auth="keys") as service:
        url = str(service.http.base_url)
        user = await service.inside.api_keys.create("a", "user")
        headers = {"Authorization": f"Bearer {user}"}
        response = await service.http.post("/api/run", json={}, headers=headers)
        assert response.status_code == 200
        key = await service.inside.api_keys.create("b", "metrics")
        shown = await asyncio.to_thread(crew_capture, "top", "--url", url, CREW_CAPTURE_KEY=key)
        assert (shown.returncode, shown.stderr) == (0, "")
        (line,) = (line for line in shown.stdout.splitlines() if line.startswith("runs  "))
        assert line.split()[1] == "1"
        assert f"{url}/metrics" in shown.stdout
        assert "no errors" in shown.stdout
        assert "\x1b" not in shown.stdout
        # The settings name the service, too.
        port = str(service.http.base_url.port)
        again = await asyncio.to_thread(crew_capture, "top", "--once", "--key", key, PORT=port)
        assert again.returncode == 0, again.stderr
        for words, fix in (
            (("--url", url), "requires a key of the role metrics or admin"),
            (("--url", url, "--key", user), "the role of this key may not read"),
            (("--url", f"{url}/health/live"), "has no metrics of Crew Capture"),
            (("--url", f"{url}/unknown"), "has no metrics of Crew Capture"),
        ):
            refused = await asyncio.to_thread(crew_capture, "top", *words)
            assert refused.returncode == 1
            assert refused.stdout == ""
            assert len(refused.stderr.splitlines()) == 1
            assert fix in refused.stderr


def test_a_service_that_does_not_run_is_one_line(crew_capture: RunCommand) -> None:
    (port,) = free_ports(1)
    done = crew_capture("top", METRICS_PORT=str(port), HOST="127.0.0.1")
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: http://127.0.0.1:{port}/metrics does not respond (Connection refused); "
        "is the service running? --url names another one\n"
    )


class _Handler(BaseHTTPRequestHandler):
    """Redirects `/away`, and counts scrapes of `/metrics`."""

    keys: list[str | None]

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/metrics")
            self.end_headers()
            return
        body = _text(10, 0, 0).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def stub() -> Iterator[tuple[str, list[str | None]]]:
    keys: list[str | None] = []
    handler = type("Handler", (_Handler,), {"keys": keys})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()
        thread.join()


def test_a_redirect_gets_no_key(stub: tuple[str, list[str | None]]) -> None:
    url, keys = stub
    with pytest.raises(ScrapeFailed, match="responds with HTTP 302"):
        scrape(f"{url}/away", "secret")
    assert keys == ["Bearer secret"]


def test_a_terminal_gets_frames_until_ctrl_c(stub: tuple[str, list[str | None]]) -> None:
    url, keys = stub
    primary, secondary = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "top", "--url", url, "--interval", "0.1"],
        stdin=secondary,
        stdout=secondary,
        stderr=secondary,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True,
    )
    os.close(secondary)
    written = b""
    while b"the last" not in written:  # the second frame
        written += os.read(primary, 65536)
    process.send_signal(signal.SIGINT)
    written += _rest(primary)
    assert process.wait() == 0
    assert len(keys) >= 2
    assert b"Traceback" not in written
    assert b"\x1b[?1049l" in written, "the terminal has its old content again"
    assert b"\x1b[?25h" in written, "the cursor is shown again"


def _rest(descriptor: int) -> bytes:
    """The remaining output of a terminal whose program ends."""
    written = b""
    try:
        while piece := os.read(descriptor, 65536):
            written += piece
    except OSError as error:
        if error.errno != errno.EIO:  # Linux's end of file
            raise
    finally:
        os.close(descriptor)
    return written
