"""Decoding of JSON of clients, in a time that is linear in its size."""

from collections.abc import Callable
from math import isinf
from typing import Any, Final

import msgspec


def _number(text: str) -> float:
    """A number with a fraction or an exponent.

    msgspec needs up to 10 µs for some of them, such as 5e-324, and a body of 1 MB holds 130,000.
    """
    number = float(text)
    if isinf(number):
        raise msgspec.ValidationError("Number out of range")
    return number


decode: Final[Callable[[bytes | str], Any]] = msgspec.json.Decoder(float_hook=_number).decode
"""Decode a JSON value. Raises msgspec.DecodeError, UnicodeDecodeError, RecursionError."""

decode_object: Final[Callable[[bytes | str], dict[str, Any]]] = msgspec.json.Decoder(
    dict[str, Any], float_hook=_number
).decode
"""Decode a JSON object. Raises what `decode` raises."""
