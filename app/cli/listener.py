"""The listening socket of the server, bound before the seconds of importing CrewAI."""

import errno
import os
import socket
from typing import Final

_CAUSES: Final = {
    errno.EADDRINUSE: "another program uses it: stop that one, or choose another port with {}",
    errno.EACCES: "ports below 1024 need a privilege: choose another one with {}",
    errno.EADDRNOTAVAIL: "this machine has no such address: correct HOST",
}

# The kernel's memory for one connection, in each direction. By default it grows to megabytes, and
# all connections of the machine share a limit: beyond it, the kernel drops what they receive.
_KERNEL_BYTES: Final = 131_072


class AddressUnusable(Exception):
    """The service can't listen on the address; the message has the fix."""

    def __init__(
        self, host: str, port: int, error: OSError, option: str = "PORT or --port"
    ) -> None:
        if isinstance(error, socket.gaierror):
            cause = "the host is unknown: correct HOST"
        else:
            code = error.errno or 0
            cause = _CAUSES.get(code, os.strerror(code)).format(option)
        super().__init__(f"can't listen on {_address(host, port)}: {cause}")


def open_listener(host: str, port: int, option: str = "PORT or --port") -> socket.socket:
    """A socket bound to the address; connections are refused until a server listens on it.

    `option` sets the port, for errors.

    Raises:
        AddressUnusable: the port is in use, or the address can't be bound.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for option_ in socket.SO_RCVBUF, socket.SO_SNDBUF:  # of its connections
            listener.setsockopt(socket.SOL_SOCKET, option_, _KERNEL_BYTES)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise AddressUnusable(host, port, error, option) from error
    listener.set_inheritable(True)  # by serving processes
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL of the service on this socket."""
    host, port, *_ = listener.getsockname()
    return f"http://{_address(host, port)}"


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
