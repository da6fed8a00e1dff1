"""The words of a model as they come, joined to about five events a second."""

import asyncio
from collections.abc import Callable

_INTERVAL_SECONDS = 0.2


class TokenStream:
    """Takes the pieces of one task's model calls and tells them together, a few times a second."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._pieces: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, piece: str) -> None:
        """Take a piece; called on the event loop."""
        self._pieces.append(piece)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_INTERVAL_SECONDS, self.flush)

    def flush(self) -> None:
        """Tell what has come since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pieces:
            text, self._pieces = "".join(self._pieces), []
            self._tell(text)
