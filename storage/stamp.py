"""Whose location it is.

A location belongs to one installation, that is, to one database: its id lies in the location as a
small object, so that no other installation takes the outputs there for orphans.
"""

from storage.drivers import Driver
from storage.errors import OutputNotFound

STAMP_NAME = ".crew-capture-installation"
"""Not the name of any output."""


async def belongs_to(place: Driver, installation_id: str, *, take_over: bool = False) -> bool:
    """Whether the place carries this installation's stamp.

    A place without a stamp, be it new or emptied by somebody, gets it; with `take_over` every place
    does. Of two installations that stamp at the same moment the later one stays, and the other
    learns of it when it asks again. Raises what the driver raises.
    """
    owner = await _owner(place)
    if owner is None or (take_over and owner != installation_id):
        await place.put(STAMP_NAME, f"{installation_id}\n".encode())
        owner = await _owner(place)
    return owner == installation_id


async def _owner(place: Driver) -> str | None:
    try:
        stamp = await place.get(STAMP_NAME)
    except OutputNotFound:
        return None
    # A power cut may leave a file empty or full of zeros.
    return stamp.decode("utf-8", "replace").strip("\0 \r\n") or None
