"""Several serving processes on one address: started, replaced when they die, ended together."""

import logging
from collections import Counter
from contextlib import suppress

from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger("crew_capture.serve")

# How long it waits, when it stops, between two looks at what was signalled to it.
_SECONDS_BETWEEN_SIGNALS = 0.2
# The looks, two a second, that a process may leave unanswered: one that is stopped for a while is
# slow, not dead, and its runs are not lost to it.
_UNANSWERED_LOOKS = 120
# How long a process may take to end once its time to stop gracefully is over. One that is frozen
# would never end; its runs are handed back by its lease.
_SECONDS_TO_END = 20.0


class Supervisor(Multiprocess):
    """Uvicorn's, but never waits for the answer of one process.

    Uvicorn's waits as long as a process may be silent, also for one that has died meanwhile. Until
    then it replaces none and hears no signal. And it forwards the first signal only.
    """

    # Counted and not timed: the time in which the supervisor itself is frozen does not count.
    _unanswered: Counter[Process]

    def init_processes(self) -> None:
        self._unanswered = Counter()
        super().init_processes()

    @property
    def started(self) -> bool:
        return all(process.exitcode != STARTUP_FAILURE for process in self.processes)

    def keep_subprocess_alive(self) -> None:
        """Replace the processes that died, or have not answered for a minute."""
        for place, process in enumerate(self.processes):
            if process.process.is_alive() and self._answers(process):
                continue
            process.kill()
            process.join()
            del self._unanswered[process]
            if process.exitcode == STARTUP_FAILURE:  # another would fail the same way
                logger.error("Process %s failed to start: all are stopped", process.pid)
                self.should_exit.set()
                return
            logger.error("Process %s died and is replaced", process.pid)
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()

    def _answers(self, process: Process) -> bool:
        """Ask it, for the next look, and tell whether it has answered one of the last."""
        self._unanswered[process] += 1
        with suppress(OSError, EOFError):  # it dies: the next look finds it dead
            while process.parent_conn.poll():
                process.parent_conn.recv()
                self._unanswered[process] = 0
            process.parent_conn.send(b"ping")
        return self._unanswered[process] <= _UNANSWERED_LOOKS

    def join_all(self) -> None:
        """Wait for the processes to end; pass on what else is signalled meanwhile.

        One that has not ended in time is killed.
        """
        # The processes have closed theirs: clients are refused, and don't wait for nobody.
        for one in self.sockets:
            one.close()
        # Counted down by its own waits: the time in which it is frozen itself does not count.
        seconds_left = (self.config.timeout_graceful_shutdown or 0) + _SECONDS_TO_END
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
