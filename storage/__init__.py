"""Task outputs between the moment they are made and the moment they are saved.

`create_store` makes an `OutputStore` over one backend or a chain of them. Everything that other
packages may use is named here.
"""

from storage.backends import StorageSettings, create_store
from storage.errors import (
    BufferFull,
    InvalidKey,
    LocationTaken,
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
from storage.sweep import Keep

__all__ = [
    "BufferFull",
    "Counters",
    "DeleteReport",
    "FoundOutput",
    "InvalidKey",
    "Keep",
    "LocationTaken",
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
