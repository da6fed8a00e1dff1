"""Several serving processes: who is killed or frozen holds up nobody else."""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import uvicorn
from uvicorn.supervisors.multiprocess import SIGNALS

from app.cli import supervisor as module
from app.cli.supervisor import Supervisor


async def empty_app(scope: Any, receive: Any, send: Any) -> None:
    """What the processes serve: their start is all that matters."""


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    """One with two processes that answer."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    config = uvicorn.Config("tests.cli.test_supervisor:empty_app", workers=2, lifespan="off")
    with socket.create_server(("127.0.0.1", 0)) as server:
        supervisor = Supervisor(config, [server])
        supervisor.init_processes()
        try:
            for process in supervisor.processes:
                assert process.wait_until_ready(30)
            yield supervisor
        finally:
            for process in supervisor.processes:
                process.process.kill()
                process.process.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)


def test_a_killed_process_is_replaced_and_the_other_left_alone(supervisor: Supervisor) -> None:
    killed, other = supervisor.processes
    killed.process.kill()
    killed.process.join()
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[1] is other
    assert supervisor.processes[0].wait_until_ready(30)
    assert not supervisor.should_exit.is_set()


def test_a_frozen_process_is_not_waited_for(supervisor: Supervisor) -> None:
    frozen, killed = supervisor.processes
    psutil.Process(frozen.pid).suspend()
    supervisor.keep_subprocess_alive()
    killed.process.kill()
    killed.process.join()
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[0] is frozen
    assert supervisor.processes[1] is not killed
    # Awake again, it is as good as ever: it answers all that it was asked.
    psutil.Process(frozen.pid).resume()
    _until(frozen.parent_conn.poll)
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[0] is frozen


def test_a_process_that_stays_frozen_is_replaced(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_UNANSWERED_CHECKS", 3)
    frozen, other = supervisor.processes
    psutil.Process(frozen.pid).suspend()
    _until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED)
    looks = 0
    while supervisor.processes[0] is frozen:
        supervisor.keep_subprocess_alive()
        _until(other.parent_conn.poll)
        looks += 1
    # Four unanswered, or two more: of its threads one may still have answered the first.
    assert looks in (4, 6)
    assert frozen.exitcode == -signal.SIGKILL
    assert supervisor.processes[1] is other


def test_serving_is_logged_once_all_processes_answer(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slow, other = supervisor.processes
    psutil.Process(slow.pid).suspend()
    _until(lambda: psutil.Process(slow.pid).status() == psutil.STATUS_STOPPED)
    supervisor.keep_subprocess_alive()
    _until(other.parent_conn.poll)
    supervisor.keep_subprocess_alive()
    assert "Serving" not in caplog.text
    psutil.Process(slow.pid).resume()
    _until(slow.parent_conn.poll)
    supervisor.keep_subprocess_alive()
    _until(slow.parent_conn.poll)
    supervisor.keep_subprocess_alive()
    port = supervisor.sockets[0].getsockname()[1]
    assert caplog.text.count(f"Serving on http://127.0.0.1:{port} with 2 processes") == 1


def test_a_frozen_process_does_not_hold_up_a_stop(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SECONDS_TO_END", 2.0)
    frozen, other = supervisor.processes
    psutil.Process(frozen.pid).suspend()
    _until(lambda: psutil.Process(frozen.pid).status() == psutil.STATUS_STOPPED)
    supervisor.terminate_all()
    stop = threading.Thread(target=supervisor.join_all, daemon=True)
    stop.start()
    stop.join(30)
    assert not stop.is_alive()
    assert frozen.exitcode == -signal.SIGKILL
    assert other.exitcode not in (None, -signal.SIGKILL)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
