"""Requests and responses of the registry server, independent of the connection. Source: distribution-spec v1.1.1."""

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


class IncomingBody(Protocol):
    """The body of a request to the registry server, which is read once."""

    length: int | None  # bytes; None if it is not known

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes into `buffer`. Return the number of bytes read, or 0 at the end of the body.

        Raises NetworkError (truncated)."""
        ...


class ServerRequest(Struct, frozen=True):
    """A request to the registry server.

    path: percent-decoded. header: a function that returns the value of a header, or None; names are case-insensitive.
    query: all values of each key."""

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    header: Callable[[str], str | None]
    body: IncomingBody

    @classmethod
    def parse(cls, method: str, target: str, header: Callable[[str], str | None], body: IncomingBody) -> ServerRequest:
        """Create a request. target: path and query as received. Raises ValueError for more than 100 parameters."""
        path, _, query = target.partition("?")
        return cls(method, unquote(path), parse_qs(query, keep_blank_values=True, max_num_fields=100), header, body)

    def query_value(self, key: str) -> str | None:
        """Return the first value of a key in the query, or None if the key is missing."""
        return next(iter(self.query.get(key, ())), None)


class BlobRange(Struct, frozen=True):
    """A range of a blob: the next `length` bytes of `reader`. The code that sends the response closes the reader."""

    reader: BlobReader
    length: int


class ServerResponse(Struct, frozen=True):
    """A response from the registry server.

    length: for HEAD, the length in bytes of the body that GET would return."""

    status: int
    headers: Headers = ()
    body: bytes | BlobRange = b""
    length: int | None = None


@dataclass(eq=False)  # not frozen: a context manager sets the traceback of an exception
class HttpError(Exception):
    """An error response as defined by the distribution-spec. code: an error code, such as MANIFEST_UNKNOWN."""

    status: int
    code: str
    message: str
    headers: Headers = ()

    def to_response(self) -> ServerResponse:
        """Return the response with the JSON error document."""
        error = {"code": self.code, "message": printable(self.message, 600), "detail": None}
        return json_response({"errors": [error]}, status=self.status, headers=self.headers)


def json_response(
    document: object, *, status: int = 200, headers: Headers = (), media_type: str = "application/json"
) -> ServerResponse:
    """Return a response with a JSON body."""
    return ServerResponse(status, (("Content-Type", media_type), *headers), json.dumps(document).encode())


def paginate(request: ServerRequest, names: Sequence[str]) -> tuple[list[str], Headers]:
    """Return the page of the sorted `names` that the query parameters `n` and `last` select.

    Also return a Link header if there is a next page. Raises HttpError if `n` is not a number."""
    count, last = request.query_value("n"), request.query_value("last")
    if count is not None and not _NUMBER.fullmatch(count):
        raise HttpError(
            400, "PAGINATION_NUMBER_INVALID", f"the query parameter n is not a number: {printable(count, 40)!r}"
        )
    after = list(names) if last is None else [name for name in names if name > last]
    if count is None or int(count) >= len(after):
        return after, ()
    page_names = after[: int(count)]
    if not page_names:
        return [], ()
    link = f'<{quote(request.path)}?n={count}&last={quote(page_names[-1], safe="")}>; rel="next"'
    return page_names, (("Link", link),)


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Parse a Range header with a single range. Return the first byte and the number of bytes.

    Return None if the whole blob must be sent, because the header is missing, invalid or not supported. Raises
    HttpError (416) if the range contains no byte of the blob. Source: RFC 9110, section 14."""
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
        raise HttpError(
            416, "RANGE_INVALID", "the range is beyond the end of the blob", (("Content-Range", f"bytes */{size}"),)
        )
    return first, last - first + 1
