"""Kinds of IP addresses, as far as it matters who may send us there: see mirror/registry/http/url_policy.py."""

from __future__ import annotations

import ipaddress
from enum import Enum


class AddressKind(Enum):
    PUBLIC = "public"
    LOOPBACK = "loopback"
    INTERNAL = "private"
    LINK_LOCAL = "link-local"
    NOWHERE = "unspecified or multicast"


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Cloud metadata services at addresses that are not link-local: they must not be had more cheaply than 169.254.169.254.
_METADATA = frozenset({"fd00:ec2::254", "100.100.100.200"})


def kind_of(address: str) -> AddressKind:
    """Of an address as getpeername() or getaddrinfo() gives it. IPv4 within IPv6 counts as that IPv4.

    Raises ValueError if it is no address."""
    return _kind(_unwrapped(ipaddress.ip_address(address)))


def _unwrapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _kind(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> AddressKind:
    if str(address).partition("%")[0] in _METADATA or address.is_link_local:
        return AddressKind.LINK_LOCAL
    if address.is_unspecified or address.is_multicast:
        return AddressKind.NOWHERE
    if address.is_loopback:
        return AddressKind.LOOPBACK
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return AddressKind.INTERNAL
    return AddressKind.PUBLIC if address.is_global and not address.is_private else AddressKind.INTERNAL


def is_literal(host: str) -> bool:
    """Whether `host`, without brackets, is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
