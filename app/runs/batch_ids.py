"""The ids of batches and of their runs, and other ids that grow with time."""

import secrets
from datetime import datetime
from uuid import UUID, uuid5


def run_id_in(batch_id: UUID, index: int) -> UUID:
    """The id of a batch's run: a repeated request gets the ids again, without a query."""
    return uuid5(batch_id, str(index))


def time_ordered_id(now: datetime) -> UUID:
    """A random UUID of version 7: later ones are larger."""
    milliseconds = int(now.timestamp() * 1000)
    random = secrets.randbits(80) & ~(0xF << 76) & ~(0x3 << 62)
    return UUID(int=milliseconds << 80 | 0x7 << 76 | 0x2 << 62 | random)
