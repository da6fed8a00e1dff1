"""Every part of a library's internals that this service relies on, with its reason.

One module lists the pins of one library. `changed` compares their sources with those that were
read when the code was written. After an upgrade: read the code that changed (`python -m app.pins`
prints it, even where the engine can't be imported), run the tests, then update the digests.
"""

from collections.abc import Iterable

from app.pins import a2a, crewai, litestar, mcp, openai, sqlalchemy, uvicorn
from app.pins.pin import Pin, digest

PINS: tuple[Pin, ...] = (
    *a2a.PINS,
    *crewai.PINS,
    *litestar.PINS,
    *mcp.PINS,
    *openai.PINS,
    *sqlalchemy.PINS,
    *uvicorn.PINS,
)


def changed(pins: Iterable[Pin] = PINS) -> list[str]:
    """One line for each pin whose code has changed."""
    lines = []
    for pin in pins:
        found = digest(pin.where)
        if found != pin.digest:
            what = "is gone" if found is None else f"has changed ({found})"
            lines.append(f"{pin.where} {what}; it matters because: {pin.reason}")
    return lines


__all__ = ["PINS", "Pin", "changed"]
