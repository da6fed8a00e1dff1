"""Layers around drivers: time limits, fallback, fault injection. Each is a driver itself."""

from storage.layers.fallback import Fallback
from storage.layers.faults import Faults
from storage.layers.timeout import Timeout

__all__ = ["Fallback", "Faults", "Timeout"]
