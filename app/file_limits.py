"""The limit of open files: every client and every model call under way holds one."""

import logging
import resource

logger = logging.getLogger("crew_capture.serve")

# The database, stored outputs, logs, listening sockets, CrewAI's own files.
_RESERVED = 256


def raise_open_file_limit() -> None:
    """Take as many open files as the system allows this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        logger.info("Raised the limit of open files from %d to %d", soft, hard)


def model_connections(wanted: int) -> int:
    """How many connections to models may be open: those wanted, or what the limit leaves.

    A run holds its client's connection and up to two of model calls, so models get two thirds.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = max(1, (soft - _RESERVED) * 2 // 3)
    if allowed < wanted:
        logger.warning(
            "At most %d model calls at once, not LLM_MAX_CONCURRENCY=%d: "
            "the limit of open files is %d",
            allowed,
            wanted,
            soft,
        )
    return min(wanted, allowed)
