"""Reads complete responses from a connection with blocking calls: the headers, then the body up to its verified end.

`http.client` accepts a response that is truncated inside its headers. This module rejects every truncated response.
"""

from __future__ import annotations

import zlib

from mirror.errors import Cancelled, MirrorError, RemoteError, printable
from mirror.registry.http.connection import Connection
from mirror.registry.http.headers import ResponseHead
from mirror.registry.http.protocol import ResponseParser


class TooBig(RemoteError):
    """Raised when a response that must be small, such as a manifest or a page of a list, exceeds its size limit."""


def read_head(connection: Connection, parser: ResponseParser) -> ResponseHead:
    """Read and return the status line and headers of the final response. Interim responses (1xx) are skipped.

    Raises NetworkError (truncated, timeout, too_slow, net_error), RemoteError (bad_response), Cancelled."""
    while parser.head is None:
        _receive_and_feed(connection, parser)
    return parser.head


def poll_response(connection: Connection, parser: ResponseParser) -> bool:
    """Pass the bytes that have already been received to `parser`. Return whether there is a response to read.

    Returns True if the headers of the final response are complete, or if the peer has closed the connection. Does not
    wait. Raises RemoteError (bad_response)."""
    data = connection.receive_available()
    if data:
        parser.feed(data)
    return data is not None and (not data or parser.head is not None)


def _receive_and_feed(connection: Connection, parser: ResponseParser) -> None:
    """Wait for bytes or the end of the connection, and pass either to `parser`."""
    data = connection.receive()
    if data:
        parser.feed(data)
    else:
        parser.feed_end()


class ResponseBody:
    """The body of a response whose headers have already been parsed. It is read from the connection on demand."""

    def __init__(self, connection: Connection, parser: ResponseParser) -> None:
        self._connection = connection
        self._parser = parser

    @property
    def known_remaining(self) -> int:
        """The number of body bytes that have not been read yet, or 0 if the length of the body is unknown."""
        return self._parser.known_remaining

    @property
    def is_complete(self) -> bool:
        """Whether the whole body has been read, up to its verified end."""
        return self._parser.is_finished

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can be used for another request after this response."""
        return self._parser.is_reusable

    def readinto(self, view: memoryview) -> int:
        """Read part of the body into `view`. Return the number of bytes read, or 0 at the end of the body.

        `view` must not be empty. Raises NetworkError, RemoteError, Cancelled."""
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
    """Read and return the whole body of a small response, decompressed if its content coding is gzip.

    Raises TooBig if the body has more than `limit` bytes before or after decompression. Raises RemoteError,
    NetworkError, Cancelled."""
    data = _read_up_to(body, limit) if body.known_remaining <= limit else b""
    if max(len(data), body.known_remaining) > limit:
        raise TooBig(f"{subject}: the response is larger than {limit} bytes", status=head.status)
    coding = head.headers.tokens("content-encoding")
    if not data or not coding or coding == ["identity"]:
        return data
    if coding not in (["gzip"], ["x-gzip"]):
        text = f"{subject}: the response has an unsupported content coding: {printable(', '.join(coding), 80)}"
        raise RemoteError(text, status=head.status)
    return _decompress(data, limit, subject, head.status)


def read_error_body(body: ResponseBody, head: ResponseHead, limit: int, subject: object) -> bytes:
    """Read the body of an error response for use in messages. Return an empty body if it is too large or unreadable.

    Raises only Cancelled."""
    try:
        return read_small(body, head, limit, subject)
    except TooBig:
        return b""
    except MirrorError as error:
        if isinstance(error, Cancelled):
            raise
        return b""


def _read_up_to(body: ResponseBody, limit: int) -> bytes:
    """Read and return at most `limit` + 1 bytes of the body, so that the caller can detect that it is too large."""
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
    """Decompress a gzip body.

    Raises TooBig if the result has more than `limit` bytes, and RemoteError if the data is invalid or incomplete."""
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
