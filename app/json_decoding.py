"""Decoding of JSON, in a time that is linear in its size, and bounded for that of clients."""

from collections.abc import Callable
from math import isinf
from typing import Any, Final

import msgspec

STEP_BYTES: Final = 65_536
"""Of more bytes, decoding is a step of the event loop of its own."""

MAX_NUMBERS: Final = 10_000
"""How many numbers with a fraction or an exponent a JSON text of a client may have."""


def decode(text: bytes | str) -> Any:
    """Decode a JSON value of a client.

    Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError.
    """
    return msgspec.json.Decoder(float_hook=_Numbers()).decode(text)


def decode_object(text: bytes | str) -> dict[str, Any]:
    """Decode a JSON object of a client. Raises what `decode` raises."""
    return msgspec.json.Decoder(dict[str, Any], float_hook=_Numbers()).decode(text)


def _number(text: str) -> float:
    """A number with a fraction or an exponent.

    msgspec needs up to 10 µs for some of them, such as 5e-324, and a body of 1 MB holds 130,000.
    """
    number = float(text)
    if isinf(number):
        raise msgspec.ValidationError("Number out of range")
    return number


class _Numbers:
    """Numbers with a fraction or an exponent: each needs a call, and 1 MB holds 250,000."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, text: str) -> float:
        self._count += 1
        if self._count > MAX_NUMBERS:
            problem = f"more than {MAX_NUMBERS:,} numbers with a fraction or an exponent"
            raise msgspec.ValidationError(problem)
        return _number(text)


decode_stored: Final[Callable[[bytes | str], Any]] = msgspec.json.Decoder(float_hook=_number).decode
"""Decode a JSON value that the service has stored. Raises what `decode` raises."""
