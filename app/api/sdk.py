"""SDKs of protocols, which are imported when a client first uses their protocol.

Each needs half a second and some 20 MB.
"""

import asyncio
from importlib import import_module

_imported: set[str] = set()


async def import_sdk(module: str) -> None:
    """Import a module of this package that imports an SDK, in a thread, unless it is imported."""
    if module not in _imported:
        await asyncio.to_thread(import_module, module)
        _imported.add(module)
