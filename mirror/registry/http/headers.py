"""Header fields, and the heads of requests and responses as values. Source: RFC 9112, "Message Format"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from mirror.errors import RemoteError
from mirror.util.structs import Struct

WHITE_SPACE = " \t"  # of header values: RFC 9110, 5.6.3
_UNSENDABLE = re.compile(r"[\r\n\x00]")


class Headers:
    """Header fields of a response by name, whatever its case, with all their values."""

    __slots__ = ("_fields",)

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in items:
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        self._fields.setdefault(name.lower(), []).append(value)

    @classmethod
    def parsed(cls, names: Sequence[str], values: Sequence[str]) -> Headers:
        """From names in lower case."""
        headers = cls()
        fields = headers._fields = {name: [value] for name, value in zip(names, values, strict=True)}
        if len(fields) != len(names):  # a name came more than once
            fields.clear()
            for name, value in zip(names, values, strict=True):
                fields.setdefault(name, []).append(value)
        return headers

    def get(self, name: str) -> str | None:
        """The first value."""
        found = self._fields.get(name.lower())
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        return list(self._fields.get(name.lower(), ()))

    def one(self, name: str) -> str | None:
        """The value of a field that must not be told twice. Raises RemoteError if it has differing values."""
        found = self._fields.get(name.lower())
        if not found:
            return None
        if any(value != found[0] for value in found):
            raise RemoteError(f"a response has {len(found)} differing {name} headers")
        return found[0]

    def listed(self, name: str) -> list[str]:
        """The comma-separated words of a field, lower case: `Connection`, `Transfer-Encoding`."""
        found = self._fields.get(name.lower())
        if not found:
            return []
        words = (word.strip(WHITE_SPACE).lower() for value in found for word in value.split(","))
        return [word for word in words if word]

    def __contains__(self, name: str) -> bool:
        return name.lower() in self._fields

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, value) for name, values in self._fields.items() for value in values)

    def __repr__(self) -> str:
        return f"Headers({', '.join(self._fields)})"  # values may be secrets


class Head(Struct, frozen=True):
    """Status line and headers of one whole response head. minor: of HTTP/1.x."""

    minor: int
    status: int
    reason: str
    headers: Headers


def request_head(method: str, target: str, fields: Sequence[tuple[str, str]]) -> bytes:
    """Raises ValueError if a field would break out of its line; its value is not in the text."""
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in fields], "\r\n"]
    head = "\r\n".join(lines)
    if not head.count("\r") == head.count("\n") == len(lines) or "\0" in head:
        name = next((name for name, value in fields if _UNSENDABLE.search(value)), "first")
        raise ValueError(f"the value of the {name} header has a line break")
    try:
        return head.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a request header has characters that HTTP cannot carry") from None
