"""The server of a single process, which says when it answers requests."""

import logging
import sys
from socket import socket

import uvicorn
from uvicorn.config import STARTUP_FAILURE

from app.cli.listener import AddressUnusable, url_of

logger = logging.getLogger("crew_capture.serve")


class Server(uvicorn.Server):
    """Uvicorn's server on listening sockets that were bound before."""

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start the application, then listen; exits with a line if that fails."""
        try:
            await super().startup(sockets)
        except OSError as error:  # another program has bound the port and listened first
            logger.error("%s", AddressUnusable(self.config.host, self.config.port, error))
            await self.lifespan.shutdown()
            sys.exit(STARTUP_FAILURE)
        for listener in (sockets or [])[:1]:  # the other one, for metrics, is logged already
            logger.info("Serving on %s", url_of(listener))
