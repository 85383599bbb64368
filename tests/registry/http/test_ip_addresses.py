"""Kinds of IP addresses."""

from __future__ import annotations

import pytest

from mirror.registry.http.ip_addresses import AddressKind, address_kind, is_ip_address


@pytest.mark.parametrize(
    ("kind", "addresses"),
    [
        (AddressKind.PUBLIC, "1.1.1.1 8.8.8.8 2606:4700::1111 ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101::1"),
        (AddressKind.LOOPBACK, "127.0.0.1 127.9.9.9 ::1 ::ffff:127.0.0.1"),
        (
            AddressKind.INTERNAL,
            "10.0.0.5 172.16.0.1 192.168.1.1 100.64.0.1 fd00::1 fec0::1 240.0.0.1 "
            "::ffff:10.0.0.1 64:ff9b::a00:1 2002:a00:1::1 198.18.0.1 0.0.0.1 255.255.255.255",
        ),
        (
            AddressKind.LINK_LOCAL,
            "169.254.169.254 fe80::1 fe80::1%eth0 ::ffff:169.254.169.254 fd00:ec2::254 100.100.100.200",
        ),
        (AddressKind.UNUSABLE, "0.0.0.0 :: 224.0.0.1 ff02::1 ::ffff:0.0.0.0"),
    ],
    ids=str,
)
def test_every_address_has_one_kind(kind: AddressKind, addresses: str) -> None:
    assert dict.fromkeys(addresses.split(), kind) == {a: address_kind(a) for a in addresses.split()}


def test_only_ip_addresses_are_recognized() -> None:
    assert [True, True, False, False] == [is_ip_address(text) for text in ("10.0.0.1", "::1", "localhost", "10.1")]
