"""The only parser for request URLs. With a single parser, the host that is checked is the host that is contacted.

The parser accepts only http and https, and rejects everything that parsers are known to interpret differently:
backslashes, user information, control characters, spaces, host names that are not ASCII, and numbers in place of a
host.
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
# Some resolvers interpret a name that ends in a number as an address (127.1, 0x7f.1, 2130706433).
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")

_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))


class BadUrl(ValueError):
    """Raised for a URL that is invalid or unsafe. The message gives the reason and contains no part of the URL."""


class Origin(Struct, frozen=True):
    """The scheme, host and port of a URL. `host` is in lower case, without brackets and without a trailing dot."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Parse `https://host[:port]` or `http://host[:port]`. Raises BadUrl."""
        origin, target = split(text)
        if target not in ("", "/"):
            raise BadUrl("it must not have a path")
        return origin

    @property
    def netloc(self) -> str:
        """The value for the Host header: `host`, or `host:port` if the port is not the default for the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def split(text: str) -> tuple[Origin, str]:
    """Split an absolute URL into its origin and its target, which is the path and the query. Raises BadUrl."""
    match = _ABSOLUTE.fullmatch(_check_characters(text))
    if match is None:
        raise BadUrl("it is not absolute")
    scheme, rest = match[1].lower(), match[2]
    if scheme not in _PORTS:
        raise BadUrl("its scheme is neither http nor https")
    hierarchy = _HIERARCHY.match(rest)
    if hierarchy is None:
        raise BadUrl("it has no host")
    return _parse_origin(scheme, hierarchy[1]), _escape(hierarchy[2])


def join(origin: Origin, target: str, text: str) -> tuple[Origin, str]:
    """Resolve an absolute or relative URL against the URL given by `origin` and `target`.

    Return the origin and the target of the resolved URL. Its percent-encoding and query are not changed. Only a path
    without a leading slash is merged with the path of `target` (RFC 3986, 5.2). Raises BadUrl."""
    text = _check_characters(text).partition("#")[0]
    if not text:
        raise BadUrl("it is empty")
    if _ABSOLUTE.match(text.partition("?")[0]):
        resolved, new_target = split(text)
    elif text.startswith("//"):
        resolved, new_target = split(f"{origin.scheme}:{text}")
    else:
        path = target.partition("?")[0]
        resolved = origin
        if text.startswith("?"):
            new_target = path + text
        elif text.startswith("/"):
            new_target = text
        else:
            relative, mark, query = text.partition("?")
            new_target = _remove_dot_segments(path.rpartition("/")[0] + "/" + relative) + mark + query
    return resolved, _escape(new_target) if new_target.startswith("/") else "/" + _escape(new_target)


def _escape(target: str) -> str:
    """Percent-encode the non-ASCII characters in `target`, because a request line must not contain them."""
    return target if target.isascii() else quote(target, safe=_PRINTABLE, encoding="latin-1")


def _check_characters(text: str) -> str:
    """Return `text` unchanged if all its characters are allowed in a URL. Raises BadUrl otherwise."""
    if _FORBIDDEN.search(text):
        raise BadUrl("it contains a space, a control character or a backslash")
    if not text.isascii() and max(text) > "\xff":
        raise BadUrl("it contains characters that must be percent-encoded")
    return text


def _parse_origin(scheme: str, authority: str) -> Origin:
    """Return the origin for a scheme and an authority of the form `host[:port]`. Raises BadUrl."""
    if "@" in authority:
        raise BadUrl("it contains a user name")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise BadUrl("its host is not valid")
    host = match[1].lower().removesuffix(".")
    port = int(match[2]) if match[2] else _PORTS[scheme]
    if not 1 <= port <= 65535:
        raise BadUrl("its port is out of range")
    return Origin(scheme, _parse_host(host), port)


def _parse_host(host: str) -> str:
    """Return a host name or address in its canonical form, without brackets. Raises BadUrl."""
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise BadUrl("its IPv6 address is not valid") from None
    if _ENDS_IN_NUMBER.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise BadUrl("its host is a number instead of a name or address") from None
    if len(host) > 253 or not all(0 < len(label) < 64 for label in host.split(".")):  # RFC 1035, 2.3.4
        raise BadUrl("its host is not valid")
    return host


def _remove_dot_segments(path: str) -> str:
    """Resolve the segments `.` and `..` of a path. Source: RFC 3986, 5.2.4."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    if path.endswith(("/.", "/..")):
        kept.append("")
    return "/".join(kept)
