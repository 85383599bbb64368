"""What a registry is asked and what it answers, without the connection. Source: distribution-spec v1.1.1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs, quote, unquote

from mirror.errors import printable
from mirror.store import BlobReader
from mirror.util.structs import Struct

Headers = tuple[tuple[str, str], ...]

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_NUMBER = re.compile(r"\d{1,9}")


class Body(Protocol):
    """The body of a request."""

    length: int | None  # bytes; None: not known before its end

    def readinto(self, buffer: memoryview) -> int:
        """0 only at its end. Raises NetworkError: it was cut."""
        ...


class Request(Struct, frozen=True):
    """path: decoded; header: gives one by its name, in any case; query: every value of every key."""

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    header: Callable[[str], str | None]
    body: Body

    @classmethod
    def of(cls, method: str, target: str, header: Callable[[str], str | None], body: Body) -> Request:
        path, _, query = target.partition("?")
        return cls(method, unquote(path), parse_qs(query, keep_blank_values=True, max_num_fields=100), header, body)

    def value(self, key: str) -> str | None:
        """The first value of a key of the query."""
        return next(iter(self.query.get(key, ())), None)


class Stretch(Struct, frozen=True):
    """Part of a blob: `length` bytes from where `reader` stands. Whoever sends it closes the reader."""

    reader: BlobReader
    length: int


class Response(Struct, frozen=True):
    """length: of the body that a GET would have, where this is the answer to a HEAD."""

    status: int
    headers: Headers = ()
    body: bytes | Stretch = b""
    length: int | None = None


@dataclass(eq=False)  # not frozen: a context manager sets the traceback of what passes it
class Problem(Exception):
    """An answer that is an error of the distribution-spec. code: like MANIFEST_UNKNOWN."""

    status: int
    code: str
    message: str
    headers: Headers = ()

    def response(self) -> Response:
        error = {"code": self.code, "message": printable(self.message, 600), "detail": None}
        return as_json({"errors": [error]}, status=self.status, headers=self.headers)


def as_json(
    document: object, *, status: int = 200, headers: Headers = (), media_type: str = "application/json"
) -> Response:
    return Response(status, (("Content-Type", media_type), *headers), json.dumps(document).encode())


def page(request: Request, names: Sequence[str]) -> tuple[list[str], Headers]:
    """The names that `n` and `last` ask for, of a sorted list, and the Link to those that follow. Raises Problem."""
    count, last = request.value("n"), request.value("last")
    if count is not None and not _NUMBER.fullmatch(count):
        raise Problem(400, "PAGINATION_NUMBER_INVALID", f"n is no number: {printable(count, 40)!r}")
    after = list(names) if last is None else [name for name in names if name > last]
    if count is None or int(count) >= len(after):
        return after, ()
    taken = after[: int(count)]
    if not taken:
        return [], ()
    link = f'<{quote(request.path)}?n={count}&last={quote(taken[-1], safe="")}>; rel="next"'
    return taken, (("Link", link),)


def wanted_range(text: str | None, size: int) -> tuple[int, int] | None:
    """The one range (first byte, bytes) of a Range header; None: the whole, as for what is not understood.

    Raises Problem (416): there is nothing there. Source: RFC 9110, section 14."""
    found = _RANGE.fullmatch(text.strip()) if text else None
    if found is None or not (found[1] or found[2]):
        return None
    if found[1]:
        first, last = int(found[1]), min(int(found[2] or size - 1), size - 1)
        if found[2] and int(found[2]) < first:
            return None
    else:
        first, last = max(0, size - int(found[2])), size - 1
    if first >= size or last < first:
        raise Problem(416, "RANGE_INVALID", "nothing is there", (("Content-Range", f"bytes */{size}"),))
    return first, last - first + 1
