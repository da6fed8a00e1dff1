"""Instruments of several processes, in files of a folder that they share."""

import fcntl
import gc
import math
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from app.telemetry import metrics
from tests.telemetry.scraped import Scraped, scraped

_FORKS = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of this test's own, whatever this process has recorded before."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with metrics.shared_folder():
        (folder,) = tmp_path.glob("crew-capture-metrics-*")
        yield folder
    assert not folder.exists()


class Peer:
    """Another process that records, until it is closed or killed."""

    def __init__(self, runs: int, slots: int) -> None:
        self._pipe, theirs = _FORKS.Pipe()
        self.process: ForkProcess = _FORKS.Process(target=self._run, args=(theirs, runs, slots))
        self.process.start()
        assert self._pipe.poll(20)
        self._pipe.recv()

    def close(self) -> None:
        self._pipe.send("end")
        self.process.join(20)

    def kill(self) -> None:
        self.process.kill()
        self.process.join(20)

    def _run(self, pipe: Connection, runs: int, slots: int) -> None:
        with metrics.recording():
            metrics.RUN_SLOTS.set(slots)
            metrics.PROCESSES.set(1)
            for _ in range(runs):
                metrics.RUNS_SUBMITTED.inc("idea")
                metrics.RUN_QUEUE_DURATION.observe(0.2, "idea")
            pipe.send("ready")
            pipe.recv()


@contextmanager
def peer(runs: int = 0, slots: int = 0) -> Iterator[Peer]:
    one = Peer(runs, slots)
    try:
        yield one
    finally:
        if one.process.is_alive():
            one.kill()


def test_a_scrape_shows_all_processes_together() -> None:
    with metrics.recording(), peer(runs=3, slots=10), peer(runs=4, slots=20):
        metrics.RUNS_SUBMITTED.inc("idea", by=5)
        metrics.RUN_QUEUE_DURATION.observe(700, "idea")
        found = scraped()
    assert found("crewcapture_runs_submitted_total", crew="idea") == 12
    assert found("crewcapture_run_slots") == 30
    assert found("crewcapture_run_queue_duration_seconds_count", crew="idea") == 8
    assert found("crewcapture_run_queue_duration_seconds_bucket", le="0.1") == 0
    assert found("crewcapture_run_queue_duration_seconds_bucket", le="0.25") == 7
    assert found("crewcapture_run_queue_duration_seconds_bucket", le="+Inf") == 8
    assert found("crewcapture_run_queue_duration_seconds_sum") == pytest.approx(701.4)


@pytest.mark.parametrize("end", [Peer.kill, Peer.close])
def test_the_gauges_of_a_dead_process_vanish_and_its_counters_stay(end: object) -> None:
    assert callable(end)
    with metrics.recording():
        with peer(runs=3, slots=10) as one:
            assert scraped()("crewcapture_run_slots") == 10
            end(one)
            found = scraped()
            assert found("crewcapture_run_slots") == 0
            assert found("crewcapture_processes") == 0
            assert found("crewcapture_runs_submitted_total") == 3
        with peer(runs=4, slots=20):
            found = scraped()
            assert found("crewcapture_run_slots") == 20
            assert found("crewcapture_runs_submitted_total") == 7


def test_the_number_of_files_is_that_of_processes_at_a_time(folder: Path) -> None:
    with metrics.recording():
        for _ in range(5):
            with peer(runs=1):
                pass
        assert len(list(folder.iterdir())) == 3 * 2
        assert scraped()("crewcapture_runs_submitted_total") == 5


@pytest.mark.parametrize("is_shared", [True, False])
def test_a_fork_of_a_process_that_records_changes_nothing(tmp_path: Path, is_shared: bool) -> None:
    def count() -> None:
        metrics.RUNS_SUBMITTED.inc("idea", by=100)
        gc.collect()

    if not is_shared:
        metrics.leave_shared_folder()
    with metrics.recording():
        folders = set(tmp_path.iterdir())
        metrics.RUNS_SUBMITTED.inc("idea")
        fork = _FORKS.Process(target=count)
        fork.start()
        fork.join(20)
        assert fork.exitcode == 0
        assert set(tmp_path.iterdir()) == folders
        metrics.RUNS_SUBMITTED.inc("idea")
        assert scraped()("crewcapture_runs_submitted_total") == 2


def test_a_frozen_process_keeps_its_gauges() -> None:
    with metrics.recording(), peer(slots=10) as one:
        os.kill(one.process.pid or 0, signal.SIGSTOP)
        assert scraped()("crewcapture_run_slots") == 10


def test_the_folder_is_private(folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_folder_of_a_killed_service_is_removed_and_no_other(
    tmp_path: Path, folder: Path
) -> None:
    left, new, used = (tmp_path / f"crew-capture-metrics-{name}" for name in ("a", "b", "c"))
    for each in (left, new, used):
        each.mkdir()
        (each / "0.lock").touch()
    now = time.time()
    descriptor = os.open(used, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: now + 30)
        with metrics.shared_folder():
            assert left.exists()
        patch.setattr("time.time", lambda: now + 3600)
        new.chmod(0o700)
        with metrics.shared_folder():
            assert not left.exists()
            assert used.exists()
            assert folder.exists()
    os.close(descriptor)


def test_a_fact_of_all_processes_is_the_newest() -> None:
    with metrics.recording(), peer():
        metrics.RUNS.set(5, "queued")
        assert scraped()("crewcapture_runs", status="queued") == 5
        metrics.RUNS.set(None, "queued")
        assert scraped().values("crewcapture_runs", status="queued") == {}


def test_memory_is_of_each_process_and_other_backends_are_shared() -> None:
    for backend, combined in (("memory", 7), ("local", 4)):
        numbers = [(3.0, 1.0), (4.0, 2.0)]
        assert metrics.STORED_OUTPUTS.combined((backend,), numbers) == combined
    assert metrics.OLDEST_OUTPUT.combined(("memory",), [(9.0, 1.0), (4.0, 2.0)]) == 9
    assert math.isnan(metrics.STORED_OUTPUTS.combined(("memory",), [(math.nan, 1.0)]))


def test_nothing_is_shown_of_an_earlier_recording() -> None:
    with metrics.recording():
        metrics.RUNS_SUBMITTED.inc("idea")
    metrics.RUNS_SUBMITTED.inc("idea")
    with metrics.shared_folder(), metrics.recording():
        assert scraped()("crewcapture_runs_submitted_total") == 0


def test_both_formats_have_every_metric_of_the_table() -> None:
    with metrics.recording():
        metrics.prepare_crews(["idea"])
        text, text_type = metrics.render("text/plain;version=0.0.4,*/*;q=0.1")
        openmetrics, openmetrics_type = metrics.render("application/openmetrics-text;version=1.0.0")
    families = {name.removesuffix("_total") for name in metrics.TABLE}
    assert set(Scraped(text.decode()).families) == families
    assert {each.name for each in openmetrics_families(openmetrics.decode())} == families
    assert text_type.startswith("text/plain; version=0.0.4")
    assert openmetrics_type.startswith("application/openmetrics-text; version=1.0.0")


def test_names_have_their_units() -> None:
    for name, instrument in metrics.TABLE.items():
        assert (instrument.kind == "counter") == name.endswith("_total"), name
        if name.endswith(("duration", "age", "lag", "size")):
            pytest.fail(f"{name} has no unit")
        assert instrument.help.endswith("."), name
        assert not {"run_id", "user", "owner", "key"} & set(instrument.labels), name


def test_models_and_tools_beyond_a_number_share_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in ("_models", "_tools"):
        monkeypatch.setattr(metrics, names, metrics._Names())
    with metrics.recording():
        for number in range(1000):
            _observe_model_call(f"model-{number}", "ok")
            metrics.observe_tool_call(tool=f"tool-{number}", end="ok", seconds=1)
        found = scraped()
    for name in (
        "gen_ai_client_inference_duration_seconds",
        "gen_ai_execute_tool_duration_seconds",
    ):
        assert len(found.values(f"{name}_count")) <= 101
        assert found(f"{name}_count") == 1000


def test_a_model_call_is_recorded_with_its_end_and_its_tokens() -> None:
    with metrics.recording():
        metrics.count_model_calls_in_flight("gpt", 1)
        metrics.count_model_calls_in_flight("gpt", 1)
        metrics.count_model_calls_in_flight("gpt", -1)
        _observe_model_call("gpt", "ok")
        _observe_model_call("gpt", "RateLimitError")
        found = scraped()
    model = {"gen_ai_request_model": "gpt"}
    assert found("crewcapture_model_calls_in_flight", **model) == 1
    duration = "gen_ai_client_inference_duration_seconds"
    assert found(f"{duration}_count", **model, error_type="") == 1
    assert found(f"{duration}_count", **model, error_type="RateLimitError") == 1
    assert found(f"{duration}_sum", **model) == 6
    assert found("gen_ai_client_inference_time_to_first_chunk_seconds_sum", **model) == 1
    usage = "gen_ai_client_inference_usage"
    assert found(f"{usage}_input_tokens_total", **model) == 14
    assert found(f"{usage}_output_tokens_total", **model) == 10
    assert found(f"{usage}_cache_read_input_tokens_total", **model) == 4
    assert found("crewcapture_model_call_retries_total", **model) == 2
    assert found("crewcapture_model_call_wait_duration_seconds_sum", **model) == 0.5


def _observe_model_call(model: str, end: str) -> None:
    metrics.observe_model_call(
        model=model,
        end=end,
        seconds=3,
        seconds_to_first_token=0.5,
        input_tokens=7,
        output_tokens=5,
        cached_tokens=2,
        retries=1,
        waited_seconds=0.25,
    )
