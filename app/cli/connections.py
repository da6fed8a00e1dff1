"""Time and size limits of a connection until the headers of a request have arrived."""

import asyncio

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.middleware.request_limits import MAX_HEADER_BYTES

_HEADER_SECONDS = 20.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, with limits for headers: 408 if they are late, 431 if they are too long.

    Uvicorn limits no headers. The application checks headers that have arrived completely.
    """

    _deadline: asyncio.TimerHandle | None = None  # set while headers are expected
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:  # another request on the same connection
            self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._deadline is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                problem = f"the headers are larger than {MAX_HEADER_BYTES // 1024} KiB"
                self._refuse("431 Request Header Fields Too Large", problem)

    def on_headers_complete(self) -> None:
        self._expect_nothing()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

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

    def _refuse(self, status: str, problem: str) -> None:
        self._expect_nothing()
        if self.transport.is_closing():
            return
        body = msgspec.json.encode({"error": problem})
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
