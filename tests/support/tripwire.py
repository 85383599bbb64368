"""Blocks connections that leave loopback. Installed in the test process and, by child/sitecustomize.py, in the tool's.

An audit hook sees the calls of every library. It cannot be removed.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Collection

_NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg")


class OutsideLoopback(OSError):
    """A connection or look-up tried to leave loopback."""


def is_outside(address: object) -> bool:
    """Whether a socket address is an internet address other than loopback."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return False  # the path of a Unix socket, netlink, or empty
    host = address[0].partition("%")[0]
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return not is_local_name(host)


def is_other(address: object, only: Collection[str]) -> bool:
    """Whether a socket address is an internet address that is not in the list; False if the list is empty."""
    return bool(only) and isinstance(address, tuple) and f"{address[0]}:{address[1]}" not in only


def is_local_name(host: object) -> bool:
    """Whether this name is resolved without a query."""
    text = host.decode("latin-1") if isinstance(host, bytes) else str(host or "localhost")
    if text.rstrip(".").lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True  # an address needs no query; connecting to it is checked separately


def install(note: Callable[[str], None], *, only: Collection[str] = ()) -> None:
    """Block every connection and look-up that would leave this machine, and report it to `note`.

    only: the addresses (`127.0.0.1:5000`) that are allowed; empty: any on loopback. Names below `.invalid` are not
    found, as RFC 6761 requires, and are not reported."""

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo":
            _look_up(arguments[0], note)
        elif event in _NETWORK and (is_outside(arguments[1]) or is_other(arguments[1], only)):
            note(f"{event} {arguments[1]}")
            raise OutsideLoopback(f"a test left the allowed addresses: {event} {arguments[1]}")

    sys.addaudithook(audit)


def _look_up(host: object, note: Callable[[str], None]) -> None:
    if is_local_name(host):
        return
    name = host.decode("latin-1") if isinstance(host, bytes) else str(host)
    if name.rstrip(".").lower().endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    note(f"look-up of {name}")
    raise OutsideLoopback(f"tests stay on loopback: look-up of {name}")
