"""The store that run services stand on."""

from tests.runs.conftest import store

__all__ = ["store"]
