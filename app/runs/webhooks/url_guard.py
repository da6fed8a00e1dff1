"""Guards the URLs of webhooks: they may reach the internet, and no private network.

Prevents SSRF (server-side request forgery): clients choose the URLs, and the service could reach
internal hosts that its clients can't. Prevents DNS rebinding, too: addresses are checked again when
a connection is opened, because a name may resolve to an internal address by then.
"""

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from aiohttp import AddrInfoType, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from app.runs.errors import InvalidInput

_MAX_URL_CHARACTERS: Final = 2000
_HOST_NAME: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
# A name that needs longer is resolved again at delivery.
_LOOK_UP_SECONDS: Final = 2.0
# Threads start when they are needed. A name server that never responds blocks one for some seconds.
_RESOLVER_THREADS: Final = 64
# Metadata services of clouds, which `ipaddress` considers public.
_CLOUD_METADATA: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("168.63.129.16/32"))
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_6TO4: Final = IPv6Network("2002::/16")  # embeds an IPv4 address; deprecated
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressRefused(OSError):
    """A connection to a private network was refused before it was opened."""


def is_public(address: str) -> bool:
    """Whether this is an IP address, in its canonical form, of the public internet."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        embedded = _embedded_ipv4(parsed)
        if embedded is None:
            return parsed in _GLOBAL_UNICAST and parsed not in _6TO4 and parsed.is_global
        parsed = embedded
    return (
        parsed.is_global
        and not parsed.is_multicast
        and not parsed.is_reserved
        and not any(parsed in network for network in _CLOUD_METADATA)
    )


def _embedded_ipv4(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


class UrlGuard:
    """Refuses URLs of private networks (SSRF), when they are submitted and when they are called.

    With `allow_private`, any address is allowed.
    """

    def __init__(self, *, allow_private: bool, resolver: AbstractResolver | None = None) -> None:
        self._allow_private = allow_private
        self._resolver = resolver or _ThreadResolver()

    async def check(self, url: str, field: str) -> None:
        """Raise InvalidInput for `field` if its URL is invalid or resolves to a private network.

        A name that can't be resolved passes: it may exist at the time of delivery.
        """
        host = _host(url, field)
        if not self._allow_private and not all(map(is_public, await self._addresses(host))):
            raise InvalidInput(field, f"{host} is an address of a private network")

    def connector(self) -> TCPConnector:
        """A connector for allowed addresses alone; it raises AddressRefused for others."""
        return TCPConnector(limit=0, resolver=self._resolver, socket_factory=self._open_socket)

    async def aclose(self) -> None:
        await self._resolver.close()

    async def _addresses(self, host: str) -> list[str]:
        if ":" in host:
            return [host]
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                # Also for numbers: only the system parses all notations of IPv4 addresses.
                found = await self._resolver.resolve(host, 0, socket.AF_UNSPEC)
        except (OSError, TimeoutError):
            return []
        return [result["host"] for result in found]

    def _open_socket(self, target: AddrInfoType) -> socket.socket:
        # DNS rebinding: the connection goes to this address, whatever the name resolved to before.
        family, kind, protocol, _, address = target
        if not self._allow_private and not is_public(address[0]):
            raise AddressRefused("an address of a private network")
        return socket.socket(family, kind, protocol)


class _ThreadResolver(AbstractResolver):
    """The system's resolver, in threads of its own: slow names delay webhooks alone."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _host(url: str, field: str) -> str:
    """The host of a valid URL; raises InvalidInput for any other."""
    if len(url) > _MAX_URL_CHARACTERS:
        problem = f"longer than {_MAX_URL_CHARACTERS} characters"
        raise InvalidInput(field, problem)
    try:
        parsed = URL(url)
        host = parsed.raw_host or ""
    except ValueError:
        raise InvalidInput(field, "not a URL") from None
    if parsed.scheme not in ("http", "https"):
        raise InvalidInput(field, "must start with http:// or https://")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        problem = "must not contain a user or password: the signature authenticates the service"
        raise InvalidInput(field, problem)
    if not url.isprintable() or " " in url or not (":" in host or _HOST_NAME.fullmatch(host)):
        raise InvalidInput(field, "not a URL")
    return host
