"""The installation stamp of a location.

A location belongs to one installation, that is, to one database. A small object in the location
holds the installation's id, so that no other installation deletes the outputs there as orphans.
"""

from storage.drivers import Driver
from storage.errors import OutputNotFound

STAMP_NAME = ".crew-capture-installation"
"""Not the name of any output."""


async def belongs_to(location: Driver, installation_id: str, *, replace: bool = False) -> bool:
    """Whether the location holds this installation's stamp.

    A location without a stamp, new or emptied, is stamped; with `replace`, every location is. When
    two installations stamp at the same moment, the later stamp wins, and the other installation
    finds it at its next check. Raises the driver's errors.
    """
    owner = await _owner(location)
    if owner is None or (replace and owner != installation_id):
        await location.put(STAMP_NAME, f"{installation_id}\n".encode())
        owner = await _owner(location)
    return owner == installation_id


async def _owner(location: Driver) -> str | None:
    try:
        stamp = await location.get(STAMP_NAME)
    except OutputNotFound:
        return None
    # A power cut may leave a file empty or full of zeros.
    return stamp.decode("utf-8", "replace").strip("\0 \r\n") or None
