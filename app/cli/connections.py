"""Limits of connections: while headers arrive, while a response waits, and of their number."""

import asyncio
import math
from itertools import islice
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.errors import ErrorAnswer, ErrorType
from app.api.middleware.request_limits import MAX_HEADER_BYTES

_HEADER_SECONDS = 20.0
# The time in which a client must read something, while data waits for it.
_SEND_SECONDS = 60.0
_FIRST_CHECK_SECONDS = 1.0
# How long a client that is refused while it still sends has to read why.
_LINGER_SECONDS = 1.0
# A connection's data of one read: the event loop reads from each connection once in a pass. A
# request that waits for its turn holds so much of its body.
_READ_BYTES: Final = 32_768
# If more connections than a few wait for their clients, bytes that complete no request are read
# from so many at a time. In between the event loop is free: a loop that is always busy delays the
# threads of the database.
_FEW = 64
_DEFERRED_READS: Final = 8
_DEFER_SECONDS = 0.002


class _Shared:
    """The state that the connections of an event loop share."""

    def __init__(self) -> None:
        # Each connection empties it at once.
        self.buffer = memoryview(bytearray(_READ_BYTES))
        # The connections that wait for a whole request of their client, the longest first.
        self.waiting: dict[BoundedHttpProtocol, None] = {}
        # Those whose next read is deferred, oldest first.
        self.deferred: dict[BoundedHttpProtocol, None] = {}

    def defer(self, connection: "BoundedHttpProtocol") -> None:
        """Read from the connection later, a few connections at a time."""
        if not self.deferred:
            connection.loop.call_later(_DEFER_SECONDS, self.read_deferred)
        self.deferred[connection] = None

    def read_deferred(self) -> None:
        """Let the oldest of the deferred connections read on, and the others later."""
        for connection in list(islice(self.deferred, _DEFERRED_READS)):
            del self.deferred[connection]
            connection.read_on()
        if self.deferred:
            loop = next(iter(self.deferred)).loop
            loop.call_later(_DEFER_SECONDS, self.read_deferred)


_SHARED: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared]] = WeakKeyDictionary()


class BoundedHttpProtocol(HttpToolsProtocol, asyncio.BufferedProtocol):
    """Uvicorn's protocol, with limits on headers, reads, and the time that a client may not read.

    Headers have a limit on their time (408) and their size (431). A connection whose client reads
    nothing for a while, although data waits for it, is aborted. Uvicorn bounds none of them.

    The application checks the size of headers that arrived completely. A pipelined request beyond a
    limit gets no response while another one is under way: it would end up inside of that one. The
    connection closes afterwards. It is the same with bytes that are not HTTP (400).

    After such a response only the write side is closed at first (RFC 9112, section 9.6). Closed at
    once with bytes unread, the connection would be reset, and the client might never read it.

    Each part of a body is read when the application receives the previous one. Parts of headers,
    and of a body that has its response, are read from a few connections at a time. So a pass of the
    event loop does not read from a thousand.

    Beyond `max_connections`, the one that waits longest for a whole request is closed. If none
    waits, the new one is refused (503).
    """

    max_connections: ClassVar[float] = math.inf
    """Of an event loop, so that files remain for the database, outputs and models."""

    _deadline: asyncio.TimerHandle | None = None  # while a request's headers are incomplete
    _header_bytes = 0
    _send_check: asyncio.TimerHandle | None = None  # while data may wait for the client
    _unsent_bytes = math.inf  # at the previous check
    _chunk_is_all_headers = True
    _is_in_body = False  # of a request that has its response already, perhaps
    _previous_cycle: Any = None  # which responds while the current request arrives
    _is_refused = False  # nothing more is read, and its write side is closed

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = _SHARED.setdefault(self.loop, _Shared())

    def get_buffer(self, sizehint: int) -> memoryview:
        """The memory for the next read."""
        return self._shared.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle the bytes of a read."""
        self.data_received(bytes(self._shared.buffer[:nbytes]))

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()
        if len(self.connections) > self.max_connections:
            self._make_room()
        self._shared.waiting[self] = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # another request on the same connection
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._chunk_is_all_headers = not self._is_in_body and (
            self._deadline is not None or not self._is_responding
        )
        super().data_received(data)
        if self._is_refused or self.transport.is_closing():
            return
        if self._deadline is not None:
            # Before the request's first byte there may be others, of the request before it.
            self._header_bytes += len(data) if self._chunk_is_all_headers else 0
            if self._header_bytes > MAX_HEADER_BYTES:
                problem = f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB"
                self._refuse("431 Request Header Fields Too Large", "headers_too_large", problem)
        elif not self._is_responding and self.timeout_keep_alive_task is None:
            # Bytes that begin no request have ended uvicorn's keep-alive: nothing else would
            # close this connection.
            self._deadline = self.loop.call_later(_HEADER_SECONDS, self._close_idle)
        self._defer_next_read()

    def on_headers_complete(self) -> None:
        self._expect_nothing()
        self._chunk_is_all_headers = False
        self._is_in_body = True
        # A cycle has the values of its request: hundreds of thousands of objects, perhaps.
        self._previous_cycle = self.cycle if self._is_responding else None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._previous_cycle = None
        self._shared.waiting.pop(self, None)
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        status, problem = "400 Bad Request", "the request is not valid HTTP"
        if self.pipeline and self.pipeline[0][0] is self.cycle and self._is_in_body:
            self.pipeline.popleft()  # it has not begun
            self.cycle, self._is_in_body = self._previous_cycle, False
        if not (self._is_in_body and self._is_responding):
            self._refuse(status, "invalid_request", problem)
        elif not self.cycle.response_started:  # the body of the request that waits for it
            self._answer(status, "invalid_request", problem)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        if self._send_check is not None:
            self._send_check.cancel()
        self._shared.waiting.pop(self, None)
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
        elif not self._is_responding:  # no pipelined request
            self._shared.waiting[self] = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._check_sending()  # a close waits for all data to be sent

    @property
    def _is_responding(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _make_room(self) -> None:
        """Close the connection that waits longest, or this one if none waits."""
        longest = next(iter(self._shared.waiting), None)
        if longest is None:
            problem = "too many connections; try again later"
            self._refuse("503 Service Unavailable", "overloaded", problem)
        else:
            longest.transport.close()
            del self._shared.waiting[longest]

    def _defer_next_read(self) -> None:
        """Unless the request is whole, read no more for a while.

        The application receives the parts of a body in turns. With few connections, other parts
        are read as they arrive, so that a client that is refused gets its response.
        """
        if self._is_in_body and self._is_responding:
            if self.cycle.message_event.is_set():
                self.flow.pause_reading()
        elif len(self._shared.waiting) > _FEW and (self._is_in_body or self._deadline is not None):
            self.flow.pause_reading()
            self._shared.defer(self)

    def read_on(self) -> None:
        """End the pause before the next read."""
        if not (self._is_refused or self.transport.is_closing()):
            self.flow.resume_reading()

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        problem = f"the headers did not arrive within {_HEADER_SECONDS:g} s"
        self._deadline = self.loop.call_later(
            _HEADER_SECONDS, self._refuse, "408 Request Timeout", "request_timeout", problem
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

    def _refuse(self, status: str, error_type: ErrorType, problem: str) -> None:
        self._expect_nothing()
        if self.transport.is_closing():
            return
        if self._is_responding:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._answer(status, error_type, problem)

    def _answer(self, status: str, error_type: ErrorType, problem: str) -> None:
        body = msgspec.json.encode(ErrorAnswer(problem, error_type))
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._is_refused = True
        if self.cycle is not None:  # the application receives and sends nothing more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.flow.pause_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    def _close_idle(self) -> None:
        self._expect_nothing()
        if not self._is_responding:
            self.transport.close()
