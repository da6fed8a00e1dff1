"""Database URLs: checked, with the asynchronous driver, and parameters as libpq means them."""

from typing import Any, Final
from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

# The driver reads these from a DSN only, with libpq's meaning.
_OF_LIBPQ: Final = frozenset(
    {
        "gsslib",
        "krbsrvname",
        "passfile",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslpassword",
        "sslrootcert",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "target_session_attrs",
        # Parameters of the session, which the driver forwards to the server.
        "application_name",
        "options",
    }
)
_OF_DRIVER: Final = frozenset({"command_timeout", "host", "port", "ssl", "timeout"})
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


class InvalidDatabaseUrl(ValueError):
    """The URL can't be used. The message names the part, and never holds the password."""


def parse_url(url: str) -> tuple[URL, dict[str, Any]]:
    """The URL with the asynchronous driver for it, and further arguments of the driver.

    Raises:
        InvalidDatabaseUrl: its form, its port or a parameter is wrong.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InvalidDatabaseUrl("is no URL such as postgresql://USER:PASSWORD@HOST/NAME") from None
    except ValueError:  # SQLAlchemy reads the port as a number
        raise InvalidDatabaseUrl(
            "its port is no number; write special characters of a password percent-encoded, "
            "such as %40 for @"
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        return parsed.set(drivername="sqlite+aiosqlite"), {}
    if parsed.port is not None and not 0 < parsed.port < 65_536:
        raise InvalidDatabaseUrl(f"its port {parsed.port} is not in 1 to 65535")
    return _for_postgresql(parsed)


def driver_arguments(url: str) -> dict[str, Any]:
    """The arguments with which asyncpg connects to a PostgreSQL URL. Raises InvalidDatabaseUrl."""
    parsed, arguments = parse_url(url)
    _, of_url = parsed.get_dialect()().create_connect_args(parsed)
    return {**of_url, **arguments}


def _for_postgresql(url: URL) -> tuple[URL, dict[str, Any]]:
    arguments: dict[str, Any] = {}
    query = {name: values[-1] for name, values in url.normalized_query.items()}
    if "sslmode" in query and query["sslmode"] not in _SSL_MODES:
        allowed = ", ".join(_SSL_MODES)
        raise InvalidDatabaseUrl(f"sslmode={query['sslmode']} is none of {allowed}")
    if "connect_timeout" in query:
        arguments["timeout"] = _seconds(query.pop("connect_timeout"))
    # libpq's default, "prefer", is all that the driver can do.
    if query.get("channel_binding") in ("prefer", "disable"):
        del query["channel_binding"]
    if unknown := query.keys() - _OF_LIBPQ - _OF_DRIVER:
        known = ", ".join(sorted(_OF_LIBPQ | {"connect_timeout", "host", "port"}))
        raise InvalidDatabaseUrl(
            f"its parameter {min(unknown)}={query[min(unknown)]} is not supported: remove it; "
            f"supported are {known}"
        )
    of_libpq = {name: value for name, value in query.items() if name in _OF_LIBPQ}
    if of_libpq:
        arguments["dsn"] = f"postgresql://?{urlencode(of_libpq)}"
    url = url.set(drivername="postgresql+asyncpg").difference_update_query(
        url.query.keys() - _OF_DRIVER
    )
    return url, arguments


def _seconds(text: str) -> int | None:
    try:
        return int(text) or None  # libpq's 0 is no limit
    except ValueError:
        raise InvalidDatabaseUrl(f"connect_timeout={text} is no number of seconds") from None
