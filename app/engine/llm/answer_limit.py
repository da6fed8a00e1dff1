"""The limit of one model response: `MAX_OUTPUT_CHARS`, in bytes and in streamed characters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

MAX_OUTPUT_CHARS = 1_000_000
"""The default of the setting."""

# JSON may write a character as two escapes of six bytes.
_BYTES_PER_CHARACTER = 12
_ENVELOPE_BYTES = 1 << 20


class _Function(msgspec.Struct):
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Chunk(msgspec.Struct):
    """The parts of a chunk that clients join: chat completions, and `delta` of responses."""

    choices: list[_Choice] | None = None
    delta: str | None = None


_chunk = msgspec.json.Decoder(_Chunk)


class AnswerLimit:
    """The limit of one response's body. It counts the text of a streamed response."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self.max_bytes = max_chars * _BYTES_PER_CHARACTER + _ENVELOPE_BYTES
        """The limit of a body that is not streamed, and of one line of a streamed body."""
        self._chars = 0

    def count(self, chars: int) -> bool:
        """Count streamed characters; False if the response exceeds the limit."""
        self._chars += chars
        return self._chars <= self.max_chars

    def count_chunk(self, data: bytes) -> bool:
        """Count the text of a streamed chunk, whole if its format is unknown."""
        if data == b"[DONE]":
            return True
        try:
            return self.count(_chars_of(_chunk.decode(data)))
        except msgspec.MsgspecError:
            return self.count(len(data))


def data_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The data of the given lines of server-sent events."""
    for line in lines:
        data = line.removeprefix(b"data:").strip()
        if data and data != line:  # else a comment, another field, the end of an event
            yield data


def _chars_of(chunk: _Chunk) -> int:
    chars = len(chunk.delta or "")
    for choice in chunk.choices or ():
        if choice.delta is not None:
            chars += len(choice.delta.content or "")
            for call in choice.delta.tool_calls or ():
                chars += len(call.function.arguments or "") if call.function else 0
    return chars
