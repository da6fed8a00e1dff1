"""The limit of open files: every client and every active model call holds one."""

import logging
import math
import resource

logger = logging.getLogger("crew_capture.serve")

# The database, stored outputs, logs, listening sockets, CrewAI's own files.
_RESERVED = 256


def raise_open_file_limit() -> None:
    """Raise the limit of open files to the maximum that the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        logger.info("Raised the limit of open files from %d to %d", soft, hard)


def client_connections(requested_models: int) -> float:
    """The number of clients' connections that may be open: the files that models leave."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    return max(1, soft - _RESERVED - min(requested_models, _allowed_models(soft)))


def model_connections(requested: int) -> int:
    """The number of model connections that may be open: `requested`, or fewer by the limit.

    A run holds its client's connection and up to two of model calls, so models get two thirds.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return requested
    allowed = _allowed_models(soft)
    if allowed < requested:
        logger.warning(
            "At most %d model calls at once, not LLM_MAX_CONCURRENCY=%d: "
            "the limit of open files is %d",
            allowed,
            requested,
            soft,
        )
    return min(requested, allowed)


def _allowed_models(files: int) -> int:
    return max(1, (files - _RESERVED) * 2 // 3)
