"""Forms of a megabyte are decoded in steps, to what the standard library decodes."""

from typing import Any, cast
from urllib.parse import parse_qsl

import pytest
from litestar.exceptions import ClientException

from app.web import forms
from app.web.forms import read_form


class _Request:
    """A request without a session."""

    auth = None

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def body(self) -> bytes:
        return self._body


async def _read(body: bytes) -> dict[str, str]:
    return dict(await read_form(cast(Any, _Request(body))))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps after the first ones, of few bytes each."""
    steps: list[str] = []

    async def next_step() -> None:
        steps.append("step")

    monkeypatch.setattr(forms, "_STEP_BYTES", 5)
    monkeypatch.setattr(forms, "next_step", next_step)
    return steps


@pytest.mark.parametrize(
    "body",
    [
        b"a=%0D%0A%0D%0A%C3%A9+b%2B%25&b=&c&&d=e=f&a=last",
        b"a=x%0D%0A%0D%0A%C3%A9+b%2B%25&%61%61%61%61%61=2",
        b"a=xx%0D%0A%0D%0A%C3%A9+b%2B%25",
        b"a=xxx%0D%0A%0D%0A%C3%A9+b%2B%25",
        "a=éééééé&b=%zz%%41%%4%".encode(),
        b"a=%%%%%%%%%%%%%41%%%",
        b"",
    ],
)
async def test_a_form_is_decoded_as_by_the_standard_library(steps: list[str], body: bytes) -> None:
    assert await _read(body) == dict(parse_qsl(body.decode(), keep_blank_values=True))
    assert len(steps) >= len(body) // 10 - 5


async def test_the_fields_of_a_form_are_bounded_and_utf_8() -> None:
    assert len(await _read(b"&".join(b"a%d=1" % number for number in range(1000)))) == 1000
    with pytest.raises(ClientException, match="at most 1,000 fields"):
        await _read(b"&" * 1000)
    for body in (b"a=\xff", b"a=%ff", b"%ff=a"):
        with pytest.raises(ClientException, match="not a form in UTF-8"):
            await _read(body)
