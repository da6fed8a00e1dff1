"""The signal that the supervisor sends to a single serving process."""

import signal
from typing import Final

RETIRE: Final = signal.SIGUSR1
"""Stop, while other processes accept connections on the same address: close it at once."""
