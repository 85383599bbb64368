"""Header fields, parsed response headers and serialized request headers. Source: RFC 9112, "Message Format"."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence

from mirror.errors import RemoteError
from mirror.util.structs import Struct

WHITE_SPACE = " \t"  # around header values: RFC 9110, 5.6.3
_UNSENDABLE = re.compile(r"[\r\n\x00]")


def basic_authorization(username: str, password: str) -> str:
    """Return the value of an `Authorization` or `Proxy-Authorization` field for Basic authentication (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


class Headers:
    """The header fields of a response, with all their values. Names are case-insensitive."""

    __slots__ = ("_fields",)

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in items:
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Add a value to a field. Earlier values are kept."""
        self._fields.setdefault(name.lower(), []).append(value)

    @classmethod
    def from_lists(cls, names: Sequence[str], values: Sequence[str]) -> Headers:
        """Create headers from two parallel lists: lowercase names and their values."""
        headers = cls()
        fields = headers._fields = {name: [value] for name, value in zip(names, values, strict=True)}
        if len(fields) != len(names):  # a field is repeated
            fields.clear()
            for name, value in zip(names, values, strict=True):
                fields.setdefault(name, []).append(value)
        return headers

    def get(self, name: str) -> str | None:
        """Return the first value of a field, or None if the field is missing."""
        values = self._fields.get(name.lower())
        return values[0] if values else None

    def get_all(self, name: str) -> list[str]:
        """Return all values of a field, or an empty list if the field is missing."""
        return list(self._fields.get(name.lower(), ()))

    def single(self, name: str, request: object) -> str | None:
        """Return the value of a field that must have a single value, or None if the field is missing.

        Raises RemoteError, which names `request`, if the field is repeated with different values."""
        values = self._fields.get(name.lower())
        if not values:
            return None
        if any(value != values[0] for value in values):
            raise RemoteError(f"{request}: the response has {len(values)} {name} headers with different values")
        return values[0]

    def tokens(self, name: str) -> list[str]:
        """Return the comma-separated tokens of a field such as `Connection` or `Transfer-Encoding`, in lower case."""
        values = self._fields.get(name.lower())
        if not values:
            return []
        tokens = (token.strip(WHITE_SPACE).lower() for value in values for token in value.split(","))
        return [token for token in tokens if token]

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._fields

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, value) for name, values in self._fields.items() for value in values)

    def __repr__(self) -> str:
        return f"Headers({', '.join(self._fields)})"  # values may be secrets


class ResponseHead(Struct, frozen=True):
    """The status line and headers of a response. `minor` is the minor version of HTTP: 1 for HTTP/1.1."""

    minor: int
    status: int
    reason: str
    headers: Headers


def request_head(method: str, target: str, fields: Sequence[tuple[str, str]]) -> bytes:
    """Return a request line and headers as bytes.

    Raises ValueError if a value has a line break, a NUL or a character outside Latin-1. The error message does not
    contain the value, which may be secret."""
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in fields], "\r\n"]
    head = "\r\n".join(lines)
    if not head.count("\r") == head.count("\n") == len(lines) or "\0" in head:
        name = next((name for name, value in fields if _UNSENDABLE.search(value)), "first")
        raise ValueError(f"the value of the {name} header has a line break or a NUL")
    try:
        return head.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a request header has characters outside Latin-1") from None
