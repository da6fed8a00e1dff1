"""Several server processes on one address: started, replaced after a crash, stopped together."""

import logging
import os
from collections import Counter
from contextlib import suppress
from socket import socket

from uvicorn.config import STARTUP_FAILURE, Config
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from app.cli.listener import url_of
from app.cli.signals import RETIRE

logger = logging.getLogger("crew_capture.serve")

# The time, during a stop, between two checks for signals.
_SECONDS_BETWEEN_SIGNALS = 0.2
# The checks, two a second, that a process may leave unanswered. A process that is suspended for a
# while is slow, not dead, and keeps its runs.
_MAX_UNANSWERED_CHECKS = 120
# The time for a process to end after its graceful stop. A frozen process would never end; its runs
# are released when its lease ends.
_SECONDS_TO_END = 20.0


class Supervisor(Multiprocess):
    """Uvicorn's supervisor, except that it never waits for the answer of one process.

    Uvicorn waits for an answer until the timeout, even if the process has died meanwhile. Until
    then it replaces no process and handles no signal. It forwards only the first signal.
    """

    # Counted and not timed, so that time in which the supervisor itself is frozen does not count.
    _unanswered: Counter[Process]
    _ready: set[Process] | None  # None once it is logged that all are

    def __init__(self, config: Config, sockets: list[socket], *, stop_seconds: float = 0.0) -> None:
        """`stop_seconds` is the longest time that a process waits for its runs when it stops."""
        super().__init__(config, sockets)
        self._stop_seconds = stop_seconds

    def init_processes(self) -> None:
        self._unanswered = Counter()
        self._ready = set()
        super().init_processes()

    @property
    def started(self) -> bool:
        """Whether no process failed to start."""
        return all(process.exitcode != STARTUP_FAILURE for process in self.processes)

    def keep_subprocess_alive(self) -> None:
        """Replace the processes that died, or have not answered for a minute."""
        for index, process in enumerate(self.processes):
            if process.process.is_alive() and self._answers(process):
                continue
            process.kill()
            process.join()
            del self._unanswered[process]
            if process.exitcode == STARTUP_FAILURE:  # a new process would fail the same way
                logger.error("Process %s failed to start: all are stopped", process.pid)
                self.should_exit.set()
                return
            logger.error("Process %s died and is replaced", process.pid)
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    def _answers(self, process: Process) -> bool:
        """Whether the process has answered a recent ping; sends the next one."""
        self._unanswered[process] += 1
        with suppress(OSError, EOFError):  # it is dying: the next check finds it dead
            while process.parent_conn.poll():
                is_ready = process.parent_conn.recv()
                self._unanswered[process] = 0
                if is_ready:
                    self._note_ready(process)
            process.parent_conn.send(b"ping")
        return self._unanswered[process] <= _MAX_UNANSWERED_CHECKS

    def _note_ready(self, process: Process) -> None:
        if self._ready is None:
            return
        self._ready.add(process)
        if self._ready.issuperset(self.processes):
            self._ready = None
            listener = self.sockets[0]
            logger.info("Serving on %s with %d processes", url_of(listener), len(self.processes))

    def restart_all(self) -> None:
        """Replace each process as soon as the new one responds."""
        for index, old in enumerate(self.processes):
            new = Process(self.config, self.sockets)
            new.start()
            if not new.wait_until_ready(self.config.timeout_worker_healthcheck, self.should_exit):
                new.kill()
                new.join()
                logger.error("Process %s was not ready in time: the restart ends", new.pid)
                return
            self.processes[index] = new
            _retire(old)

    def handle_ttou(self) -> None:
        """End the last process, unless it is the only one."""
        if self.processes_num > 1:
            self.processes_num -= 1
            _retire(self.processes.pop())

    def join_all(self) -> None:
        """Wait for the processes to end; forward further signals meanwhile.

        A process that has not ended in time is killed.
        """
        # The processes accept connections until they end. Without this, clients would wait for a
        # response afterwards, instead of being refused.
        for listener in self.sockets:
            listener.close()
        # Counted down by its own waits, so that time in which it is frozen itself does not count.
        graceful_seconds = self.config.timeout_graceful_shutdown or 0
        seconds_left = self._stop_seconds + graceful_seconds + _SECONDS_TO_END
        for process in self.processes:
            while process.process.is_alive():
                process.process.join(_SECONDS_BETWEEN_SIGNALS)
                seconds_left -= _SECONDS_BETWEEN_SIGNALS
                if seconds_left <= 0 and process.process.is_alive():
                    logger.error("Process %s has not ended in time and is killed", process.pid)
                    process.kill()
                if self.signal_queue:
                    self.signal_queue.clear()
                    self.terminate_all()


def _retire(process: Process) -> None:
    """End a process while the others accept connections on its address."""
    if process.process.is_alive() and process.pid is not None:
        os.kill(process.pid, RETIRE)
    process.terminate()
    process.join()
