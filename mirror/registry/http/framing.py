"""Reads complete responses from a connection with blocking calls: the head, then the body up to its verified end.

`http.client` accepts a response that is cut off inside its headers as complete; here that is always an error.
"""

from __future__ import annotations

import zlib

from mirror.errors import MirrorError, RemoteError, printable
from mirror.registry.http.connection import Connection
from mirror.registry.http.headers import ResponseHead
from mirror.registry.http.protocol import ResponseParser


class TooBig(RemoteError):
    """A small response, such as a manifest or a page of a list, is larger than the limit."""


def read_head(connection: Connection, parser: ResponseParser) -> ResponseHead:
    """Read and return the final response head. Interim heads (1xx) are skipped within the same time limits.

    Raises NetworkError (truncated, timeout, too_slow, net_error), RemoteError (bad_response), Cancelled."""
    while parser.head is None:
        _receive_and_feed(connection, parser)
    return parser.head


def poll_response(connection: Connection, parser: ResponseParser) -> bool:
    """Feed `parser` received bytes without waiting. Return True after a final head or the end of the connection.

    Raises RemoteError (bad_response)."""
    data = connection.peek()
    if data:
        parser.feed(data)
    return data is not None and (not data or parser.head is not None)


def _receive_and_feed(connection: Connection, parser: ResponseParser) -> None:
    """Wait for bytes, or the end of the connection, and feed `parser`."""
    data = connection.receive()
    if data:
        parser.feed(data)
    else:
        parser.feed_end()


class ResponseBody:
    """Reads the body of a response whose head was parsed."""

    def __init__(self, connection: Connection, parser: ResponseParser) -> None:
        self._connection = connection
        self._parser = parser

    @property
    def known_remaining(self) -> int:
        """Bytes of the body that are known to follow; 0 if the length is unknown."""
        return self._parser.known_remaining

    @property
    def is_complete(self) -> bool:
        """Whether the whole body was read, up to its verified end."""
        return self._parser.is_finished

    @property
    def is_reusable(self) -> bool:
        """Whether the connection may serve another request."""
        return self._parser.is_reusable

    def readinto(self, view: memoryview) -> int:
        """Fill the beginning of `view`, which is not empty, and return the number of bytes; 0 at the end.

        Raises NetworkError, RemoteError, Cancelled."""
        parser, connection = self._parser, self._connection
        while not (count := parser.copy_body(view)) and not parser.complete:
            unparsed = parser.unparsed_bytes
            if not unparsed:
                _receive_and_feed(connection, parser)
            elif count := connection.receive_into(view[:unparsed]):
                parser.skip(count)
                break
            else:
                parser.feed_end()
        return count


def read_small(body: ResponseBody, head: ResponseHead, limit: int, subject: object) -> bytes:
    """Return the whole body, decompressed if it is encoded as gzip. limit: bytes, before and after decompression.

    Raises TooBig, RemoteError, NetworkError, Cancelled."""
    data = _read_up_to(body, limit) if body.known_remaining <= limit else b""
    if max(len(data), body.known_remaining) > limit:
        raise TooBig(f"{subject}: the response is larger than {limit} bytes", status=head.status)
    coding = head.headers.tokens("content-encoding")
    if not data or not coding or coding == ["identity"]:
        return data
    if coding not in (["gzip"], ["x-gzip"]):
        text = f"{subject}: unsupported content coding {printable(', '.join(coding), 80)}"
        raise RemoteError(text, status=head.status)
    return _decompress(data, limit, subject, head.status)


def read_error_body(body: ResponseBody, head: ResponseHead, limit: int, subject: object) -> bytes:
    """Return the body of an error response for messages; empty if it is too large or cannot be read.

    Raises only Cancelled."""
    try:
        return read_small(body, head, limit, subject)
    except TooBig:
        return b""
    except MirrorError as error:
        if error.code == "interrupted":
            raise
        return b""


def _read_up_to(body: ResponseBody, limit: int) -> bytes:
    """Return the body up to `limit` + 1 bytes."""
    if body.is_complete:
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


def _decompress(data: bytes, limit: int, subject: object, status: int) -> bytes:
    """Decompress a gzip body. Raises TooBig, RemoteError."""
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(data, limit + 1)
    except zlib.error as error:
        raise RemoteError(f"{subject}: the response body is not valid gzip", status=status) from error
    if len(plain) > limit:
        raise TooBig(f"{subject}: the decompressed response is larger than {limit} bytes", status=status)
    if not unzip.eof or unzip.unused_data:
        raise RemoteError(f"{subject}: the gzip response body is truncated or has trailing bytes", status=status)
    return plain
