"""The pages' own style sheet, scripts and icon, at addresses with a hash of their content.

All files share one hash, so that scripts can import each other by relative addresses.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from app.api.middleware.auth import PUBLIC

_FOLDER: Final = Path(__file__).with_name("static")
_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOREVER: Final = "public, max-age=31536000, immutable"
# During an upgrade, pages of another version load the files of this one.
_OTHER_VERSION: Final = "no-cache"


class Asset(NamedTuple):
    """A file that pages load."""

    content: bytes
    media_type: str


@cache
def assets() -> dict[str, Asset]:
    """The files by name. They are few and small, so they stay in memory."""
    files = (file for file in sorted(_FOLDER.iterdir()) if file.suffix in _MEDIA_TYPES)
    return {file.name: Asset(file.read_bytes(), _MEDIA_TYPES[file.suffix]) for file in files}


@cache
def _version() -> str:
    digest = hashlib.sha256()
    for name, asset in assets().items():
        digest.update(name.encode() + b"\0" + asset.content)
    return digest.hexdigest()[:12]


def asset_path(name: str) -> str:
    """The address of a file. Raises KeyError for an unknown one, so that no page names it."""
    assets()[name]
    return f"/static/{_version()}/{name}"


@get("/static/{version:str}/{name:str}", opt=PUBLIC)
async def get_asset(version: FromPath[str], name: FromPath[str]) -> Response[bytes]:
    asset = assets().get(name)
    if asset is None:
        raise NotFoundException
    cache_control = _FOREVER if version == _version() else _OTHER_VERSION
    return Response(
        asset.content, media_type=asset.media_type, headers={"Cache-Control": cache_control}
    )
