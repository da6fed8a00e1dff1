"""A store for run services to stand on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.db import Database, installation_id
from storage import OutputStore, StorageSettings, create_store


@pytest.fixture
async def store(database: Database, tmp_path: Path) -> AsyncIterator[OutputStore]:
    """A store of local files that belongs to the database."""
    store = create_store(StorageSettings(backend="local", directory=tmp_path))
    await store.start(await installation_id(database))
    yield store
    await store.aclose()
