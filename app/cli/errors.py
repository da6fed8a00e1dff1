"""Errors that an operator can fix."""

from app.db import DatabaseTooNew, DatabaseUnavailable
from app.engine import EngineError
from app.settings import SettingsError
from storage import StorageError

OPERATOR_ERRORS = (SettingsError, DatabaseUnavailable, DatabaseTooNew, StorageError, EngineError)
"""Errors whose message states the fix; a stack trace would only hide it."""
