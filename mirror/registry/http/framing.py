"""Whole responses from a connection, read with blocking calls: the head, then the body to its proven end.

`http.client` takes a response that was cut within its headers for a complete one; here it is an error, always.
"""

from __future__ import annotations

import zlib

from mirror.errors import MirrorError, RemoteError, printable
from mirror.registry.http.connection import Connection
from mirror.registry.http.headers import Head
from mirror.registry.http.protocol import ResponseParser


class TooBig(RemoteError):
    """A small response, a manifest or a page, is bigger than we read."""


def read_head(connection: Connection, parser: ResponseParser) -> Head:
    """Read until `parser` has the final head. Interim ones (1xx) are passed over, within the time of the pace.

    Raises NetworkError (truncated, timeout, too_slow, net_error), RemoteError (bad_response), Cancelled."""
    while parser.head is None:
        _receive(connection, parser)
    return parser.head


def poll_response(connection: Connection, parser: ResponseParser) -> bool:
    """Feed `parser` what came, without waiting: whether that is a final head, or the end of the connection.

    Raises RemoteError (bad_response)."""
    data = connection.peek()
    if data:
        parser.feed(data)
    return data is not None and (not data or parser.head is not None)


def _receive(connection: Connection, parser: ResponseParser) -> None:
    data = connection.receive()
    if data:
        parser.feed(data)
    else:
        parser.feed_end()


class Body:
    """The body of the response that `parser` has the head of."""

    def __init__(self, connection: Connection, parser: ResponseParser) -> None:
        self._connection = connection
        self._parser = parser

    @property
    def announced(self) -> int:
        """Bytes that are certain to follow; 0 where only the end will show."""
        return self._parser.announced

    @property
    def whole(self) -> bool:
        """Whether the proven end was read."""
        return self._parser.finished

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another request."""
        return self._parser.reusable

    def readinto(self, view: memoryview) -> int:
        """Fill the beginning of `view`, which is not empty; 0: the end. Raises NetworkError, RemoteError, Cancelled."""
        parser, connection = self._parser, self._connection
        while not (count := parser.take(view)) and not parser.complete:
            unparsed = parser.unparsed
            if not unparsed:
                _receive(connection, parser)
            elif count := connection.receive_into(view[:unparsed]):
                parser.skip(count)
                break
            else:
                parser.feed_end()
        return count


def read_small(body: Body, head: Head, limit: int, subject: object) -> bytes:
    """All of a small body, decoded if gzip. Raises TooBig, RemoteError, NetworkError, Cancelled."""
    data = _read(body, limit) if body.announced <= limit else b""
    if max(len(data), body.announced) > limit:
        raise TooBig(f"{subject}: a response is bigger than {limit} bytes", status=head.status)
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
        raise RemoteError(f"{subject}: a response is not the gzip it says it is", status=status) from error
    if len(plain) > limit:
        raise TooBig(f"{subject}: a response unpacks to more than {limit} bytes", status=status)
    if not unzip.eof or unzip.unused_data:
        raise RemoteError(f"{subject}: a response's gzip is cut short or followed by something", status=status)
    return plain
