"""Errors that an operator can fix."""

from app.cli.listener import AddressUnusable
from app.db import DatabaseTooNew, DatabaseUnavailable
from app.engine import EngineError
from app.settings import SettingsError
from storage import StorageError

OPERATOR_ERRORS = (
    AddressUnusable,
    DatabaseTooNew,
    DatabaseUnavailable,
    EngineError,
    SettingsError,
    StorageError,
)
"""Errors whose message states the fix; a stack trace would only hide it."""
