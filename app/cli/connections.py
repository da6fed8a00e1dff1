"""Limits of a connection while headers arrive, and while a response waits for its client."""

import asyncio
import math
from typing import Any, Final
from weakref import WeakKeyDictionary

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.middleware.request_limits import MAX_HEADER_BYTES
from app.pacer import turn

_HEADER_SECONDS = 20.0
# The time in which a client must read something, while data waits for it.
_SEND_SECONDS = 60.0
_FIRST_CHECK_SECONDS = 1.0
# A connection's data of one read: the event loop reads from each connection once in a pass. A
# request that waits for its turn holds so much of its body.
_READ_BYTES: Final = 32_768

# Connections of an event loop share a buffer, because each empties it at once.
_BUFFERS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview]] = WeakKeyDictionary()


class BoundedHttpProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """Uvicorn's protocol, with limits on headers, reads, and the time that a client may not read.

    Headers have a limit on their time (408) and their size (431). A connection whose client reads
    nothing for a while, although data waits for it, is aborted. Uvicorn bounds none of them.

    The application checks the size of headers that arrived completely. A pipelined request beyond a
    limit gets no response while another one is under way: it would end up inside of that one. The
    connection closes afterwards.

    Each part of a body is read when the application receives the previous one. The rest of a body
    that has its response is discarded in turns. So a thousand bodies are not read in one pass of
    the event loop.
    """

    _deadline: asyncio.TimerHandle | None = None  # while a request's headers are incomplete
    _header_bytes = 0
    _send_check: asyncio.TimerHandle | None = None  # while data may wait for the client
    _unsent_bytes = math.inf  # at the previous check
    _chunk_is_all_headers = True
    _is_in_body = False  # of a request that has its response already, perhaps
    _discarding: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._buffer = _BUFFERS.get(self.loop) or memoryview(bytearray(_READ_BYTES))
        _BUFFERS[self.loop] = self._buffer

    def get_buffer(self, sizehint: int) -> memoryview:
        """The memory for the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle the bytes of a read."""
        self.data_received(bytes(self._buffer[:nbytes]))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # another request on the same connection
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        self._chunk_is_all_headers = not self._is_in_body and (
            self._deadline is not None or not self._is_responding
        )
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_body:
            self._wait_for_next_part()
        if self._deadline is not None:
            # Before the request's first byte there may be others, of the request before it.
            self._header_bytes += len(data) if self._chunk_is_all_headers else 0
            if self._header_bytes > MAX_HEADER_BYTES:
                problem = f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB"
                self._refuse("431 Request Header Fields Too Large", problem)
        elif not self._is_responding and self.timeout_keep_alive_task is None:
            # Bytes that begin no request have ended uvicorn's keep-alive: nothing else would
            # close this connection.
            self._deadline = self.loop.call_later(_HEADER_SECONDS, self._close_idle)

    def on_headers_complete(self) -> None:
        self._expect_nothing()
        self._chunk_is_all_headers = False
        self._is_in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        if self._send_check is not None:
            self._send_check.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._check_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent_bytes = math.inf  # the client has read

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._check_sending()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._check_sending()  # a close waits for all data to be sent

    @property
    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_next_part(self) -> None:
        """Read no more until the application has received this part, or it can be discarded."""
        if not self._is_responding:
            self.flow.pause_reading()
            self._discarding = self.loop.create_task(self._discard_next_part())
        elif self.cycle.message_event.is_set():
            self.flow.pause_reading()

    async def _discard_next_part(self) -> None:
        await turn()
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        problem = f"the headers did not arrive within {_HEADER_SECONDS:g} s"
        self._deadline = self.loop.call_later(
            _HEADER_SECONDS, self._refuse, "408 Request Timeout", problem
        )

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _check_sending(self) -> None:
        if self._send_check is None:
            self._unsent_bytes = math.inf
            self._send_check = self.loop.call_later(_FIRST_CHECK_SECONDS, self._abort_unless_read)

    def _abort_unless_read(self) -> None:
        """Abort if nothing was sent since the previous check; check again if data waits.

        A client that reads slowly keeps its connection.
        """
        self._send_check = None
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent_bytes:
            self.transport.abort()
        elif unsent and (self.flow.write_paused or self.transport.is_closing()):
            self._unsent_bytes = unsent
            self._send_check = self.loop.call_later(_SEND_SECONDS, self._abort_unless_read)

    def _refuse(self, status: str, problem: str) -> None:
        self._expect_nothing()
        if self.transport.is_closing():
            return
        if self._is_responding:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        body = msgspec.json.encode({"error": problem})
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _close_idle(self) -> None:
        self._expect_nothing()
        if not self._is_responding:
            self.transport.close()
