"""Kinds of IP addresses, such as public or loopback, for the rules of mirror/registry/http/url_policy.py."""

from __future__ import annotations

import ipaddress
from enum import Enum
from typing import TypeAlias

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressKind(Enum):
    """The kind of an IP address. The values appear in messages."""

    PUBLIC = "public"
    LOOPBACK = "loopback"
    INTERNAL = "private"
    LINK_LOCAL = "link-local"
    UNUSABLE = "unspecified or multicast"


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Cloud metadata services at addresses that are not link-local. They are treated like 169.254.169.254.
_METADATA = frozenset({"fd00:ec2::254", "100.100.100.200"})


def address_kind(address: str) -> AddressKind:
    """Return the kind of an IP address that is given as a string.

    If an IPv6 address embeds an IPv4 address, return the kind of the IPv4 address. Raises ValueError if `address` is
    not an IP address."""
    return _classify(_unwrap_ipv4(ipaddress.ip_address(address)))


def _unwrap_ipv4(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that is embedded in an IPv6 address, otherwise the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _classify(address: IPAddress) -> AddressKind:
    """Return the kind of an IPv4 address, or of an IPv6 address that embeds no IPv4 address."""
    if str(address).partition("%")[0] in _METADATA or address.is_link_local:
        return AddressKind.LINK_LOCAL
    if address.is_unspecified or address.is_multicast:
        return AddressKind.UNUSABLE
    if address.is_loopback:
        return AddressKind.LOOPBACK
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return AddressKind.INTERNAL
    return AddressKind.PUBLIC if address.is_global and not address.is_private else AddressKind.INTERNAL


def is_ip_address(host: str) -> bool:
    """Return whether `host`, without brackets, is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
