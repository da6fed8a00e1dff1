"""Untrusted markdown as safe HTML, rendered in a child process that has bounds.

A parser of markdown needs minutes for some texts of a megabyte. In a child process it blocks no
event loop, and it can be stopped.
"""

import asyncio
import html
import resource
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Self

import nh3
from markdown_it import MarkdownIt

MAX_CHARACTERS: Final = 500_000
_RENDER_SECONDS: Final = 2.0
_START_SECONDS: Final = 30.0
# A crowd of readers waits for its turns: reports have some thousand characters.
_MAX_WAITING_CHARACTERS: Final = 32 * MAX_CHARACTERS
_MAX_WAIT_SECONDS: Final = 5.0
_CACHED_PAGES: Final = 128
_MAX_CACHED_CHARACTERS: Final = 200_000
# Of the child's address space.
_MAX_MEMORY_BYTES: Final = 1 << 30
_LENGTH: Final = struct.Struct("!I")
_READY: Final = b"ready"

# HTML in the text is shown as text; the rendered HTML is reduced to harmless tags all the same.
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
_LINKS: Final = {"http", "https", "mailto"}


def to_safe_html(markdown: str) -> str:
    """Render untrusted markdown: no scripts, styles, images, frames or odd links survive."""
    rendered = _MARKDOWN.render(markdown)
    return nh3.clean(rendered, tags=nh3.ALLOWED_TAGS - {"img"}, url_schemes=_LINKS)


def as_plain_text(markdown: str) -> str:
    """The fallback: the text itself, escaped."""
    return f"<pre>{html.escape(markdown)}</pre>\n"


class HtmlRenderer:
    """Renders one text at a time in a child process, which starts with the first text.

    `as_plain_text` stands in for a text that is too large, needs too long or waits too long. It
    stands in for every text while too many characters wait.
    """

    def __init__(
        self,
        *,
        render_seconds: float = _RENDER_SECONDS,
        max_wait_seconds: float = _MAX_WAIT_SECONDS,
    ) -> None:
        self._render_seconds = render_seconds
        self._max_wait_seconds = max_wait_seconds
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting_characters = 0
        self._cache: OrderedDict[bytes, str] = OrderedDict()

    async def render(self, markdown: str) -> str:
        """Return safe HTML. Never raises."""
        room = min(MAX_CHARACTERS, _MAX_WAITING_CHARACTERS - self._waiting_characters)
        if len(markdown) > room:
            return as_plain_text(markdown)
        text = markdown.encode("utf-8", "replace")
        key = sha256(text).digest()
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return known
        self._waiting_characters += len(markdown)
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await self._turn.acquire()
            try:
                rendered = await self._render(text)
            finally:
                self._turn.release()
        except TimeoutError:
            return as_plain_text(markdown)
        finally:
            self._waiting_characters -= len(markdown)
        if rendered is None:
            rendered = as_plain_text(markdown)
        if len(rendered) <= _MAX_CACHED_CHARACTERS:
            self._cache[key] = rendered
            if len(self._cache) > _CACHED_PAGES:
                self._cache.popitem(last=False)
        return rendered

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the child process."""
        if self._child is not None:
            child, self._child = self._child, None
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _render(self, text: bytes) -> str | None:
        """Return the child's HTML; None if it needed too long, or ended twice at this text."""
        for _ in range(2):
            try:
                child = self._child = self._child or await _start()
                async with asyncio.timeout(self._render_seconds):
                    return await _exchange(child, text)
            except TimeoutError:
                await self.aclose()
                return None
            except (OSError, EOFError):
                await self.aclose()
            except asyncio.CancelledError:  # the client disconnected: the next must not get this
                await self.aclose()
                raise
        return None


async def _start() -> asyncio.subprocess.Process:
    """Start a child and wait until it has imported its libraries."""
    root = Path(__file__).parents[2]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        cwd=root,
        env=_environment(root),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=8 * MAX_CHARACTERS,
    )
    if child.stdout is None:
        raise EOFError
    async with asyncio.timeout(_START_SECONDS):
        await child.stdout.readexactly(len(_READY))
    return child


def _environment(root: Path) -> Mapping[str, str]:
    """The child needs no setting and no secret of this process."""
    return {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}


async def _exchange(child: asyncio.subprocess.Process, text: bytes) -> str:
    if child.stdin is None or child.stdout is None:
        raise EOFError
    child.stdin.write(_LENGTH.pack(len(text)) + text)
    await child.stdin.drain()
    (length,) = _LENGTH.unpack(await child.stdout.readexactly(_LENGTH.size))
    return (await child.stdout.readexactly(length)).decode()


def serve_pipe(texts: BinaryIO, pages: BinaryIO) -> None:
    """Render each text of a pipe until it ends: the child's whole work."""
    pages.write(_READY)
    pages.flush()
    while header := texts.read(_LENGTH.size):
        (length,) = _LENGTH.unpack(header)
        page = to_safe_html(texts.read(length).decode()).encode()
        pages.write(_LENGTH.pack(len(page)) + page)
        pages.flush()


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    serve_pipe(sys.stdin.buffer, sys.stdout.buffer)
