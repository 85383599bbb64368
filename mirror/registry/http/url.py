"""The one parser of URLs: what it says of a host is what a rule decides on and what a connection is opened to.

It knows http and https only, and refuses what parsers are known to read differently (backslashes, user
information, control bytes, spaces, names that are not ASCII, numbers in the place of an address).
Sources: RFC 3986; RFC 9110, "https URI scheme".
"""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote

from mirror.util.structs import Struct

_PORTS = {"http": 80, "https": 443}
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(.*)", re.DOTALL)
_HIERARCHY = re.compile(r"//([^/?#]*)([^#]*)")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
# A name ending in a number is an address in one of its odd spellings (127.1, 0x7f.1, 2130706433) to some resolvers.
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class BadUrl(ValueError):
    """Why a URL is not usable. Holds nothing of the URL."""


class Origin(Struct, frozen=True):
    """Scheme, host and port: the unit of trust. host: lower case, without brackets or trailing dot."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin:
        """`https://host[:port]`. Raises BadUrl."""
        origin, rest = split(text)
        if rest not in ("", "/"):
            raise BadUrl("an origin has no path")
        return origin

    @property
    def netloc(self) -> str:
        """`host`, or `host:port` where the port is not the scheme's own: the Host header; a host's name in limits."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def split(text: str) -> tuple[Origin, str]:
    """An absolute URL -> its origin, and path and query as they stand (the fragment dropped). Raises BadUrl."""
    match = _ABSOLUTE.fullmatch(_clean(text))
    if match is None:
        raise BadUrl("it is not absolute")
    scheme, rest = match[1].lower(), match[2]
    if scheme not in _PORTS:
        raise BadUrl("its scheme is neither http nor https")
    hierarchy = _HIERARCHY.match(rest)
    if hierarchy is None:
        raise BadUrl("it has no host")
    return _origin(scheme, hierarchy[1]), _escaped(hierarchy[2])


def join(origin: Origin, target: str, text: str) -> tuple[Origin, str]:
    """`text`, absolute or relative to `origin` and `target` -> origin and target. Raises BadUrl.

    Encoding and query stay as they are; only a path relative to the directory is put together, RFC 3986, 5.2."""
    text = _clean(text).partition("#")[0]
    if not text:
        raise BadUrl("it is empty")
    if _ABSOLUTE.match(text.partition("?")[0]):
        found, rest = split(text)
    elif text.startswith("//"):
        found, rest = split(f"{origin.scheme}:{text}")
    else:
        path = target.partition("?")[0]
        found = origin
        if text.startswith("?"):
            rest = path + text
        elif text.startswith("/"):
            rest = text
        else:
            relative, mark, query = text.partition("?")
            rest = _without_dots(path.rpartition("/")[0] + "/" + relative) + mark + query
    return found, _escaped(rest) if rest.startswith("/") else "/" + _escaped(rest)


def _escaped(target: str) -> str:
    """Only bytes above ASCII are escaped, which a request line cannot carry."""
    return target if target.isascii() else quote(target, safe=_PRINTABLE, encoding="latin-1")


def _clean(text: str) -> str:
    if _FORBIDDEN.search(text):
        raise BadUrl("it has a space, a control character or a backslash")
    if not text.isascii() and max(text) > "\xff":
        raise BadUrl("it is not encoded")
    return text


def _origin(scheme: str, authority: str) -> Origin:
    if "@" in authority:
        raise BadUrl("it names a user")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise BadUrl("it has no usable host")
    host = match[1].lower().removesuffix(".")
    port = int(match[2]) if match[2] else _PORTS[scheme]
    if not 1 <= port <= 65535:
        raise BadUrl("its port is out of range")
    return Origin(scheme, _address(host), port)


def _address(host: str) -> str:
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise BadUrl("it has no usable IPv6 address") from None
    if _ENDS_IN_NUMBER.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadUrl("its host is a number, not a name or an address") from None
    if len(host) > 253 or not all(0 < len(label) < 64 for label in host.split(".")):  # RFC 1035, 2.3.4
        raise BadUrl("it has no usable host")
    return host


def _without_dots(path: str) -> str:
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    if path.endswith(("/.", "/..")):
        kept.append("")
    return "/".join(kept)
