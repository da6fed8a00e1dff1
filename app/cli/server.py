"""The server of a single process, which says when it answers requests."""

import logging
import sys
from socket import socket
from typing import Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from app.cli.listener import AddressUnusable, url_of

logger = logging.getLogger("crew_capture.serve")

# Libuv accepts one connection of each listening socket in a pass of the event loop. One client that
# connects faster than that would make the others wait for seconds.
_ACCEPTS_PER_PASS: Final = 8


class Server(uvicorn.Server):
    """Uvicorn's server on listening sockets that were bound before."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start the application, then listen; exits with a line if that fails."""
        try:
            listeners = sockets or []
            more = [one.dup() for one in listeners for _ in range(_ACCEPTS_PER_PASS - 1)]
            await super().startup([*listeners, *more])
        except OSError as error:  # another program has bound the port and listened first
            logger.error("%s", AddressUnusable(self.config.host, self.config.port, error))
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        for listener in (sockets or [])[:1]:  # the other one, for metrics, is logged already
            logger.info("Serving on %s", url_of(listener))
