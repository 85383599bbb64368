"""Heads of requests and responses: pure bytes and values. Source: RFC 9112, "Message Format"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mirror.errors import RemoteError
from mirror.util.structs import Struct

MAX_LINES = 100  # header lines
MAX_LINE = 64 << 10  # bytes, of a header or status line
END = re.compile(rb"\n\r?\n")  # Docker Hub once ended its lines with bare LFs: docker/hub-feedback#1907

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_STATUS = re.compile(r"HTTP/1\.([0-9]) ([0-9]{3})(?: (.*))?")
_STATUSES = range(100, 600)
_UNSENDABLE = re.compile(r"[\r\n\x00]")


class Headers:
    """Header fields of an answer by name, whatever its case, with all their values."""

    __slots__ = ("_fields",)

    def __init__(self, items: Iterable[tuple[str, str]] = ()) -> None:
        self._fields: dict[str, list[str]] = {}
        for name, value in items:
            self.add(name, value)

    def add(self, name: str, value: str) -> list[str]:
        """-> all values of that name."""
        values = self._fields.setdefault(name.lower(), [])
        values.append(value)
        return values

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
            raise RemoteError(f"an answer has {len(found)} differing {name} headers")
        return found[0]

    def listed(self, name: str) -> list[str]:
        """The comma-separated words of a field, lower case: `Connection`, `Transfer-Encoding`."""
        found = self._fields.get(name.lower())
        if not found:
            return []
        return [word.strip().lower() for value in found for word in value.split(",") if word.strip()]

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


def request_head(method: str, target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """Raises ValueError if a field would break out of its line; its value is not in the text."""
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in fields:
        if _UNSENDABLE.search(value):
            raise ValueError(f"the value of the {name} header has a line break")
        lines.append(f"{name}: {value}")
    lines.append("\r\n")
    try:
        return "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError("a request header has characters that HTTP cannot carry") from None


def parse_head(head: bytes) -> Head:
    """The head without its last LF and blank line. Raises RemoteError (bad_response), retryable where the status line
    is broken."""
    lines = _lines(head)
    status = _STATUS.fullmatch(lines[0])
    if status is None:
        raise RemoteError("not an HTTP/1.1 answer", retryable=True)
    if int(status[2]) not in _STATUSES:
        raise RemoteError(f"an answer with the status {status[2]}, which HTTP does not have", retryable=True)
    del lines[0]
    return Head(int(status[1]), int(status[2]), status[3] or "", _fields(lines))


def check_trailers(trailers: bytes) -> None:
    """Raises RemoteError (bad_response) if they are malformed. Nothing in them is used."""
    if trailers:
        _fields(_lines(trailers))


def _lines(head: bytes) -> list[str]:
    text = head.decode("latin-1").removesuffix("\r")
    lines = text.split("\r\n")
    if text.count("\r") >= len(lines) or text.count("\n") >= len(lines):  # not only CRLFs
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        if any("\r" in line for line in lines):
            raise RemoteError("an answer has a stray CR in its head")
    if "\x00" in text:
        raise RemoteError("an answer has a NUL in its head")
    if len(text) > MAX_LINE and max(map(len, lines)) > MAX_LINE:
        raise RemoteError(f"an answer has a header line of more than {MAX_LINE} bytes")
    return lines


def _fields(lines: list[str]) -> Headers:
    if len(lines) > MAX_LINES:
        raise RemoteError(f"an answer has more than {MAX_LINES} header lines")
    headers, is_name = Headers(), _NAME.fullmatch
    values: list[str] | None = None
    for line in lines:
        if line[:1] in (" ", "\t") and values:  # a folded line: obsolete, but some old servers send it
            values[-1] = f"{values[-1]} {line.strip()}"
            continue
        name, colon, value = line.partition(":")
        if not colon or is_name(name) is None:
            raise RemoteError("an answer has a malformed header line")
        values = headers.add(name, value.strip(" \t"))
    return headers


def bounded(partial: bytearray) -> None:
    """Raises RemoteError (bad_response) if a head that has not ended yet can only be too big."""
    lines = partial.split(b"\n")
    if len(lines) > MAX_LINES + 2 or max(map(len, lines)) > MAX_LINE + 1:
        raise RemoteError(f"an answer's head has more than {MAX_LINES} lines or {MAX_LINE} bytes in one")
