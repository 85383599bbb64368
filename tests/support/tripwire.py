"""No connection leaves loopback. Installed in the test process and, by child/sitecustomize.py, in the tool's.

An audit hook sees what every library does and cannot be got around; nor can it be removed."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Callable, Collection

_NETWORK = ("socket.connect", "socket.sendto", "socket.sendmsg")


class OutsideLoopback(OSError):
    """Something tried to reach the world."""


def is_outside(address: object) -> bool:
    """Whether a socket address is an internet address other than loopback."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return False  # a path of a Unix socket, netlink, nothing at all
    host = address[0].partition("%")[0]
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return not is_local_name(host)


def is_other(address: object, only: Collection[str]) -> bool:
    """Whether a socket address is an internet address that is not among those listed; none are listed: it is not."""
    return bool(only) and isinstance(address, tuple) and f"{address[0]}:{address[1]}" not in only


def is_local_name(host: object) -> bool:
    """Whether resolving this name asks nobody."""
    text = host.decode("latin-1") if isinstance(host, bytes) else str(host or "localhost")
    if text.rstrip(".").lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True  # an address is no question; connecting to it is looked at separately


def install(note: Callable[[str], None], *, only: Collection[str] = ()) -> None:
    """Refuse, and tell `note` of, every connection and look-up that would leave this machine.

    only: the addresses (`127.0.0.1:5000`) that may be connected to; none: any on loopback.
    Names under `.invalid` are not found, as the real world has it (RFC 6761), and nobody is told."""

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event == "socket.getaddrinfo":
            _look_up(arguments[0], note)
        elif event in _NETWORK and (is_outside(arguments[1]) or is_other(arguments[1], only)):
            note(f"{event} {arguments[1]}")
            raise OutsideLoopback(f"tests stay where they are told to: {event} {arguments[1]}")

    sys.addaudithook(audit)


def _look_up(host: object, note: Callable[[str], None]) -> None:
    if is_local_name(host):
        return
    name = host.decode("latin-1") if isinstance(host, bytes) else str(host)
    if name.rstrip(".").lower().endswith(".invalid"):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    note(f"look-up of {name}")
    raise OutsideLoopback(f"tests stay on loopback: look-up of {name}")
