"""Explanations of why a database can't be used: the cause, and the fix, in one line."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

# By PostgreSQL's error codes.
_POSTGRESQL = {
    "28": "{server} refused the user {user} or its password: correct them in DATABASE_URL",
    "3D000": "{server} has no database {name}: create it with createdb, or correct DATABASE_URL",
    "53300": "{server} has no free connection: raise its max_connections, or lower WORKERS",
    "57P03": "{server} starts or stops: try again",
    "25006": "{server} is read-only, as a standby is: name the primary in DATABASE_URL",
    "42501": "{server} denies a right to the user {user}: make it the owner of {name}",
    "53100": "the disk of {server} is full: free some space",
    "40P01": "{server} ended a deadlock: try again",
}
# By parts of SQLite's messages.
_SQLITE = {
    "readonly": "{file} can't be written: check its owner and mode, and whether its file system is "
    "read-only",
    "database is locked": "{file} is locked by another process: end it, or try again",
    "disk is full": "the disk of {file} is full: free some space",
    "not a database": "{file} is no SQLite database: name another file in DATABASE_URL",
    "malformed": "{file} is damaged: restore a backup",
    "disk i/o error": "{file} can't be read or written: check its disk",
}
# By types, the special ones first.
_CONNECTING: dict[type[BaseException], str] = {
    PoolTimeoutError: "all connections to the database are in use: try again",
    socket.gaierror: "the host {host} is unknown: correct DATABASE_URL, or check this machine's "
    "DNS",
    ssl.SSLCertVerificationError: "the certificate of {server} is not trusted: name its authority "
    "in sslrootcert",
    TimeoutError: "{server} does not answer: check host and port in DATABASE_URL, and firewalls",
    FileNotFoundError: "no server has a socket in {host}: start PostgreSQL, or correct "
    "DATABASE_URL",
    ConnectionRefusedError: "{server} refuses connections: is it running, and are host and port "
    "right?",
}


def problem(error: BaseException, url: URL) -> str:
    """Why the database of this URL raised the error. Unknown causes are named by their type.

    No text of the error itself is in it, which may hold values of a statement.
    """
    links = list(_links(error))
    if url.get_backend_name() == "sqlite":
        found = _problem_of_file(links, url)
    else:
        found = _problem_of_server(links, url)
    return found or type(links[-1]).__name__


def file_name(url: URL) -> str | None:
    """The file of an SQLite URL; None for a database in memory."""
    name = url.database
    return name if name and not name.startswith((":", "file:")) else None


def _links(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes: SQLAlchemy wraps the driver's."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.orig if isinstance(link, DBAPIError) else link.__cause__


def _problem_of_file(links: list[BaseException], url: URL) -> str | None:
    name = file_name(url)
    file = Path(name).absolute() if name else Path(":memory:")
    text = str(links[-1]).lower()
    for part, explanation in _SQLITE.items():
        if part in text:
            return explanation.format(file=file)
    if "unable to open" not in text:
        return None
    if not file.parent.is_dir():
        return f"the folder {file.parent} does not exist: create it, or correct DATABASE_URL"
    if file.is_dir():
        return f"{file} is a folder: name a file in DATABASE_URL"
    return (
        f"{file} can't be opened or created: check the owner and mode of the file and its folder, "
        "and whether the file system is read-only"
    )


def _problem_of_server(links: list[BaseException], url: URL) -> str | None:
    host = url.query.get("host") or url.host or "localhost"
    server = f"PostgreSQL at {host}:{url.port or 5432}"
    for link in links:
        state = getattr(link, "sqlstate", None) or ""
        if explanation := _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2]):
            return explanation.format(
                server=server, user=url.username or "", name=url.database or ""
            )
        if explained := _problem_of_connection(link, server, str(host)):
            return explained
    return None


def _problem_of_connection(error: BaseException, server: str, host: str) -> str | None:
    for kind, explanation in _CONNECTING.items():
        if isinstance(error, kind):
            return explanation.format(server=server, host=host)
    if not isinstance(error, OSError):
        return None
    if "SSL" in str(error):
        return f"{server} accepts no TLS: enable it there, or set sslmode in DATABASE_URL"
    if "Connect call failed" in str(error):  # at each of several addresses
        return _CONNECTING[ConnectionRefusedError].format(server=server)
    return f"{server} can't be reached: {error.strerror or type(error).__name__}"
