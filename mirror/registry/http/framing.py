"""Whole answers: heads up to their blank line, bodies of exactly the length announced. Source: RFC 9112, 6 and 8.

`http.client` takes an answer that was cut within its headers for a complete one; here it is an error, always.
"""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod

from mirror.errors import MirrorError, NetworkError, RemoteError, printable
from mirror.registry.http.connection import Connection
from mirror.registry.http.headers import END, MAX_LINE, MAX_LINES, Head, bounded, check_trailers, parse_head

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?\r?")
_LONGEST_CHUNK_LINE = 4096  # bytes, extensions included
_INTERIM = b"HTTP/1.1 1"
_LARGEST = 1 << 63  # bytes: no length beyond it is meant seriously


class TooBig(RemoteError):
    """A small answer, a manifest or a page, is bigger than we read."""


def read_head(connection: Connection) -> Head:
    """The next final head. Interim ones (1xx) are passed over, within the time of the pace.

    Raises NetworkError (truncated, timeout, too_slow, net_error), RemoteError (bad_response), Cancelled."""
    while True:
        head = _one_head(connection)
        if head.status >= 200:
            return head
        if head.status == 101:
            raise RemoteError(f"{connection.subject}: an answer switches to another protocol")


def answer_began(connection: Connection) -> bool:
    """Whether what is in the buffer is the beginning of a final answer; interim heads are dropped from it."""
    buffer = connection.buffer
    while buffer:
        interim = buffer.startswith(_INTERIM[: len(buffer)]) and not buffer.startswith(b"HTTP/1.1 101")
        if not interim:
            return True
        end = END.search(buffer)
        if end is not None:
            del buffer[: end.end()]
        elif len(buffer) > MAX_LINE or not connection.fill():
            return True  # whoever reads on will be told
    return False


def _one_head(connection: Connection) -> Head:
    buffer, seen = connection.buffer, 0
    try:
        while (end := END.search(buffer, max(0, seen - 2))) is None:
            _check_beginning(buffer)
            if len(buffer) > MAX_LINE:
                bounded(buffer)
            seen = len(buffer)
            if not connection.fill():
                raise _cut(connection, "inside the head" if buffer else "before the answer")
        head = bytes(buffer[: end.start()])
        _check_beginning(head)
        del buffer[: end.end()]
        return parse_head(head)
    except NetworkError:
        raise
    except RemoteError as error:
        raise RemoteError(f"{connection.subject}: {error.what}", retryable=error.retryable) from error


def _check_beginning(data: bytes | bytearray) -> None:
    """Tell at once, not at a timeout, that it is another protocol that answers."""
    if data[:7] != b"HTTP/1."[: len(data)]:
        raise RemoteError(f"what came is not HTTP/1.1: {bytes(data[:40])!r}", retryable=True)


def _cut(connection: Connection, where: str) -> NetworkError:
    return NetworkError(f"{connection.subject}: the connection ended {where}", code="truncated")


class Body(ABC):
    """The body of an answer, read to its proven end.

    whole: the end was seen, so the connection may serve another request if `reusable` says so."""

    def __init__(self, connection: Connection, *, reusable: bool) -> None:
        self._connection = connection
        self._reusable = reusable
        self.whole = False

    @property
    def announced(self) -> int:
        """Bytes that are certain to follow; 0 where only the end will show."""
        return 0

    @property
    def reusable(self) -> bool:
        return self.whole and self._reusable and not self._connection.buffer

    @abstractmethod
    def readinto(self, view: memoryview) -> int:
        """Fill the beginning of `view`, which is not empty; 0: the end. Raises NetworkError, RemoteError, Cancelled."""

    def _take(self, view: memoryview) -> int:
        """Some bytes, from the buffer or the wire, as many as fit; 0: the peer has ended."""
        buffer = self._connection.buffer
        if not buffer:
            return self._connection.receive_into(view)
        count = min(len(view), len(buffer))
        view[:count] = buffer[:count]
        del buffer[:count]
        return count


class _Counted(Body):
    def __init__(self, connection: Connection, length: int, *, reusable: bool) -> None:
        super().__init__(connection, reusable=reusable)
        self._left = length
        self.whole = length == 0

    @property
    def announced(self) -> int:
        return self._left

    def readinto(self, view: memoryview) -> int:
        if self.whole:
            return 0
        count = self._take(view[: self._left])
        if count == 0:
            raise _cut(self._connection, f"{self._left} bytes before the end of the body")
        self._left -= count
        self.whole = self._left == 0
        return count


class _UntilClosed(Body):
    """The peer's end is the body's: only a digest can prove that it is whole."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, reusable=False)

    def readinto(self, view: memoryview) -> int:
        count = 0 if self.whole else self._take(view)
        self.whole = count == 0
        return count


class _Chunked(Body):
    def __init__(self, connection: Connection, *, reusable: bool) -> None:
        super().__init__(connection, reusable=reusable)
        self._left = 0  # of this chunk
        self._first = True

    def readinto(self, view: memoryview) -> int:
        if self.whole:
            return 0
        if self._left == 0:
            self._next_chunk()
            if self.whole:
                return 0
        count = self._take(view[: self._left])
        if count == 0:
            raise _cut(self._connection, "inside a chunk")
        self._left -= count
        return count

    def _next_chunk(self) -> None:
        if not self._first and self._line(2) not in (b"", b"\r"):
            raise self._bad()
        self._first = False
        size = _CHUNK_SIZE.fullmatch(self._line(_LONGEST_CHUNK_LINE))
        if size is None or int(size[1], 16) >= _LARGEST:
            raise self._bad()
        self._left = int(size[1], 16)
        if self._left == 0:
            self._trailers()
            self.whole = True

    def _trailers(self) -> None:
        lines: list[bytes] = []
        while (line := self._line(MAX_LINE)) not in (b"", b"\r"):
            lines.append(line)
            if len(lines) > MAX_LINES:
                raise self._bad()
        try:
            check_trailers(b"\n".join(lines))
        except RemoteError as error:
            raise self._bad() from error

    def _line(self, limit: int) -> bytes:
        buffer, seen = self._connection.buffer, 0
        while (end := buffer.find(b"\n", seen)) < 0:
            seen = len(buffer)
            if seen > limit:
                raise self._bad()
            if not self._connection.fill():
                raise _cut(self._connection, "between two chunks")
        if end > limit:
            raise self._bad()
        line = bytes(buffer[:end])
        del buffer[: end + 1]
        return line

    def _bad(self) -> RemoteError:
        return RemoteError(f"{self._connection.subject}: malformed chunks", retryable=True)


def body_of(connection: Connection, method: str, head: Head, *, small: bool, reusable: bool = True) -> Body:
    """How the body of this answer ends. small: a body that only the peer's closing ends must have been announced.
    reusable: whether the connection may be kept, as far as the request goes.

    Raises RemoteError (bad_response)."""
    headers, subject = head.headers, connection.subject
    words = headers.listed("connection")
    reusable = reusable and "close" not in words and (head.minor >= 1 or "keep-alive" in words)
    if method == "HEAD" or head.status in (204, 304):
        return _Counted(connection, 0, reusable=reusable)
    codings = headers.listed("transfer-encoding")
    if codings:
        if codings != ["chunked"]:
            raise RemoteError(f"{subject}: unknown transfer coding {printable(', '.join(codings), 80)}")
        return _Chunked(connection, reusable=reusable and "content-length" not in headers)
    length = content_length(headers.listed("content-length"), subject)
    if length is not None:
        return _Counted(connection, length, reusable=reusable)
    if small and head.minor >= 1 and "close" not in words:
        raise RemoteError(f"{subject}: an answer does not say how long it is")
    return _UntilClosed(connection)


def content_length(values: list[str], subject: object) -> int | None:
    """Raises RemoteError (bad_response) for what is no length, and for two that differ."""
    if not values:
        return None
    first = values[0]
    if any(value != first for value in values):
        raise RemoteError(f"{subject}: an answer has differing lengths")
    if not (first.isascii() and first.isdigit()) or len(first) > 19 or int(first) >= _LARGEST:
        raise RemoteError(f"{subject}: an answer has no usable length: {printable(first, 40)}")
    return int(first)


def read_small(body: Body, head: Head, limit: int, subject: object) -> bytes:
    """All of a small body, decoded if gzip. Raises TooBig, RemoteError, NetworkError, Cancelled."""
    data = _read(body, limit) if body.announced <= limit else b""
    if max(len(data), body.announced) > limit:
        raise TooBig(f"{subject}: an answer is bigger than {limit} bytes", status=head.status)
    coding = head.headers.listed("content-encoding")
    if not data or not coding or coding == ["identity"]:
        return data
    if coding not in (["gzip"], ["x-gzip"]):
        raise RemoteError(f"{subject}: unknown content coding {printable(', '.join(coding), 80)}", status=head.status)
    return _unzipped(data, limit, subject, head.status)


def read_beginning(body: Body, head: Head, limit: int, subject: object) -> bytes:
    """What can be had of an error's body, which is for people: nothing here fails but a stop."""
    try:
        return read_small(body, head, limit, subject)
    except TooBig:
        return b""
    except MirrorError as error:
        if error.code == "interrupted":
            raise
        return b""


def _read(body: Body, limit: int) -> bytes:
    """At most limit + 1 bytes."""
    if body.whole:
        return b""
    first = bytearray(min(limit + 1, 16 << 10))
    count = body.readinto(memoryview(first))
    if count == 0:
        return b""
    data = bytearray(first[:count])
    view = memoryview(first)
    while len(data) <= limit and (count := body.readinto(view[: limit + 1 - len(data)])):
        data += view[:count]
    return bytes(data)


def _unzipped(data: bytes, limit: int, subject: object, status: int) -> bytes:
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(data, limit + 1)
    except zlib.error as error:
        raise RemoteError(f"{subject}: an answer is not the gzip it says it is", status=status) from error
    if len(plain) > limit:
        raise TooBig(f"{subject}: an answer unpacks to more than {limit} bytes", status=status)
    if not unzip.eof or unzip.unused_data:
        raise RemoteError(f"{subject}: an answer's gzip is cut short or followed by something", status=status)
    return plain
