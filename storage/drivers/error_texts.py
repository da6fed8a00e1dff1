"""The errors that object stores return as XML."""

import re
from typing import Final

_CODE_AND_MESSAGE: Final = re.compile(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)


def code_and_message(text: str) -> str | None:
    """The code and message of an error in a response; None if it has none."""
    found = _CODE_AND_MESSAGE.search(text)
    return f"{found[1]}: {found[2]}" if found else None
