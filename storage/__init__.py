"""Temporary storage of task outputs, from the end of a task until its run is saved.

`create_store` makes an `OutputStore` over one backend or a chain of backends. Other packages import
from here only.
"""

from storage.backends import StorageSettings, create_store
from storage.errors import (
    BufferFull,
    ForeignLocation,
    InvalidKey,
    LocationUnusable,
    OutputConflict,
    OutputNotFound,
    OutputUnavailable,
    StorageError,
    StoreClosed,
)
from storage.keys import OutputKey
from storage.results import (
    Counters,
    DeleteReport,
    FoundOutput,
    StoredOutput,
    SweepOutcome,
    SweepReport,
    Usage,
)
from storage.store import OutputStore
from storage.sweep import FindNeeded

__all__ = [
    "BufferFull",
    "Counters",
    "DeleteReport",
    "FindNeeded",
    "ForeignLocation",
    "FoundOutput",
    "InvalidKey",
    "LocationUnusable",
    "OutputConflict",
    "OutputKey",
    "OutputNotFound",
    "OutputStore",
    "OutputUnavailable",
    "StorageError",
    "StorageSettings",
    "StoreClosed",
    "StoredOutput",
    "SweepOutcome",
    "SweepReport",
    "Usage",
    "create_store",
]
