"""Parses configuration values that are strings, such as durations, sizes and hosts, and checks PEM files.

All functions raise ConfigError if a value is not valid. Callers add the position and the key path to the message.
"""

from __future__ import annotations

import ipaddress
import re
import stat
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from mirror.errors import ConfigError, printable
from mirror.limits import Rate
from mirror.oci.reference import parse_host
from mirror.util.bandwidth import UNLIMITED
from mirror.util.shell_commands import quote_path

_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
_BYTES |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_RATE = re.compile(r"([0-9]+)/([smh])")
_RATE_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_LARGEST_PEM = 4 << 20
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")


class MissingFileError(ConfigError):
    """Raised for a file that does not exist, or that the current user is not allowed to read."""


def connect_timeout(text: str) -> float:
    """Parse the time limit for opening a connection, from 0.1 s to 10 min, and return it in seconds."""
    return duration(text, 0.1, 600.0)


def idle_timeout(text: str) -> float:
    """Parse the time limit for a connection without traffic, from 0.1 s to 1 h, and return it in seconds."""
    return duration(text, 0.1, 3600.0)


def interval(text: str) -> float:
    """Parse the interval between two runs of a mirror, from 1 s to 31 days, and return it in seconds."""
    return duration(text, 1.0, 31 * 86400.0)


def duration(text: str, least: float, most: float) -> float:
    """Parse a duration such as `5 min`, between `least` and `most` seconds, and return it in seconds."""
    seconds = _amount(text, _SECONDS)
    if not least <= seconds <= most:
        raise ConfigError(f"expected {_format_seconds(least)}..{_format_seconds(most)}, got {printable(text, 80)}")
    return seconds


def size(text: str) -> int:
    """Parse a size, such as `50 MiB`. Return the number of bytes, which is at least 1."""
    count = _amount(text, _BYTES)
    if not 1 <= count < 1 << 63:
        raise ConfigError(f"expected more than 0 bytes and less than 8 EiB, got {printable(text, 80)}")
    return int(count)


def _amount(text: str, units: dict[str, float] | dict[str, int]) -> float:
    """Parse a number with a unit, and return the number times the factor of the unit. units: the factors by unit."""
    found = _AMOUNT.fullmatch(text)
    if not found or found[2] not in units:
        raise ConfigError(f'expected a number and a unit ({", ".join(units)}), got "{printable(text, 80)}"')
    return float(found[1]) * units[found[2]]


def _format_seconds(value: float) -> str:
    """Format a number of seconds in the largest unit that does not exceed it, such as `1.5 min`."""
    for unit in ("h", "min", "s"):
        if value >= _SECONDS[unit]:
            return f"{value / _SECONDS[unit]:g} {unit}"
    return f"{value * 1000:g} ms"


def rate(text: str) -> Rate:
    """Parse a rate of requests, such as `5/s`, `100/m` or `1000/h`."""
    found = _RATE.fullmatch(text)
    if not found:
        raise ConfigError(f'expected a rate like "5/s", got "{printable(text, 80)}"')
    return Rate(int(found[1]), _RATE_SECONDS[found[2]])


def bandwidth(text: str) -> float:
    """Parse a bandwidth, such as `10 MiB/s` or `unlimited`. Return bytes per second; infinity means no limit."""
    if text == "unlimited":
        return UNLIMITED
    amount, slash, unit = text.rpartition("/")
    if not slash or unit != "s":
        raise ConfigError(f'expected a bandwidth like "10 MiB/s", or "unlimited", got "{printable(text, 80)}"')
    return float(size(amount))


def time_of_day(text: str) -> int:
    """Parse a time of day, such as `22:00`. Return the number of minutes after midnight."""
    found = _TIME.fullmatch(text)
    if not found:
        raise ConfigError(f'expected a time from "00:00" to "23:59", got "{printable(text, 80)}"')
    return int(found[1]) * 60 + int(found[2])


def host(text: str) -> str:
    """Parse `host[:port]`, and return its canonical form, as `parse_host` does."""
    if "/" in text:
        plain = "; use `plain-http: true` for http" if text.lower().startswith("http://") else ""
        raise ConfigError(f"expected host[:port] without scheme or path{plain}")
    if "*" in text:
        raise ConfigError("a host cannot contain wildcards; list each host")
    return parse_host(text)


def proxy(text: str) -> str:
    """Check the URL of a proxy, and return it unchanged. Messages do not show the URL, as it may contain a password."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError("not the URL of a proxy; expected a URL like http://proxy.example.com:3128") from None
    if parts.scheme not in ("http", "https", "socks5h"):
        raise ConfigError("expected the URL of an http, https or socks5h proxy, like http://proxy.example.com:3128")
    if parts.scheme == "socks5h" and find_spec("socks") is None:
        raise ConfigError("a SOCKS proxy needs the extra `socks`: pip install 'mirror[socks]'")
    if not parts.hostname or port == 0 or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError("not the URL of a proxy; expected a URL like http://proxy.example.com:3128, without a path")
    if re.search(r"[\s\\]", text) or not text.isascii():
        raise ConfigError("the URL of a proxy cannot contain spaces, backslashes or non-ASCII letters; encode them")
    return text


def read_pem(file: Path) -> bytes:
    """Read a PEM file that should contain a public key. Raises MissingFileError, and ConfigError if it is not PEM."""
    return _read_pem(file, "PUBLIC KEY")[0]


def check_pem(file: Path, wanted: str) -> str | None:
    """Check that a PEM file contains a block of the kind `wanted`, which is `CERTIFICATE` or `PRIVATE KEY`.

    Return a warning if other users can access a private key, otherwise None. Raises MissingFileError if the file cannot
    be read, and ConfigError if its content is not valid."""
    data, mode = _read_pem(file, wanted)
    found = [label.decode("ascii") for label in _PEM.findall(data)]
    if not any(label.endswith(wanted) for label in found):
        raise ConfigError(f"{file} contains a {found[0].lower()}, expected a {wanted.lower()}")
    if wanted == "PRIVATE KEY":
        if "ENCRYPTED" in " ".join(found) or b"Proc-Type: 4,ENCRYPTED" in data:
            raise ConfigError(f"the key in {file} is encrypted; store it without a passphrase")
        if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
            return f"users other than its owner and group can access {file}; run `chmod 600 {quote_path(file)}`"
    return None


def _read_pem(file: Path, wanted: str) -> tuple[bytes, int]:
    """Read a PEM file, and return its content and its mode.

    wanted: the expected kind of block, for messages. Raises MissingFileError, ConfigError."""
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{file} is not a regular file")
        if status.st_size > _LARGEST_PEM:
            raise ConfigError(f"{file} has {status.st_size} bytes; a PEM file may have at most {_LARGEST_PEM} bytes")
        data = file.read_bytes()
    except OSError as error:
        raise MissingFileError(f"{file}: {(error.strerror or str(error)).lower()}") from error
    if not data.strip():
        raise ConfigError(f"{file} is empty; expected a PEM {wanted.lower()}")
    if not _PEM.search(data):
        raise ConfigError(f"{file} is not PEM; convert it to PEM, so that it has a line -----BEGIN {wanted}-----")
    return data, status.st_mode


def is_loopback(host: str) -> bool:
    """Return whether `host[:port]` is `localhost` or a loopback address."""
    name = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
