"""Parses one HTTP/1.1 response from received bytes, without I/O: the status line, the headers and the body.

llhttp (used through httptools) parses headers and chunked bodies. This module determines how the body ends, limits the
size of the headers and of the chunk framing, and verifies that the response is complete.

Sources: RFC 9112, sections 2 to 6 and 9.
"""

from __future__ import annotations

import functools
import re
from enum import Enum

import httptools

from mirror.errors import NetworkError, RemoteError, printable
from mirror.registry.http.headers import WHITE_SPACE, Headers, ResponseHead

MAX_HEAD = 256 << 10  # bytes; the maximum size of the status line and headers
MAX_FIELDS = 100  # the maximum number of header lines, and of trailer lines
_MAX_CHUNK_FRAMING = 16 << 10  # bytes between two parts of a chunked body: sizes, extensions, trailers
_MAX_LENGTH = 1 << 63  # bytes; a Content-Length of this size or more is invalid
_NO_LIMIT = 1 << 62  # bytes
_MAX_CACHED_NAMES = 2048  # bytes; longer lists of field names are parsed without the cache
_START = b"HTTP/1."
# Field names joined by line breaks; each is a token: RFC 9110, 5.6.2.
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:\n[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_MINOR_VERSIONS = {"1.0": 0, "1.1": 1}
_NO_BODY_METHODS = frozenset({"HEAD", "CONNECT"})
_NO_BODY_STATUSES = frozenset({204, 304})


class BodyFraming(Enum):
    """The rule that determines where a response body ends. Source: RFC 9112, section 6.3."""

    NONE = "no body"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    CLOSE = "the end of the connection"


class ResponseParser:
    """A parser for the response to one request. `feed` accepts received bytes, and `copy_body` copies out the body.

    `method` is the method of the request. Errors name `subject`, the request. If `small` is true, a body that ends with
    the connection is accepted only after `Connection: close` or with HTTP/1.0.

    `head` contains the headers of the final response, or is None until they are complete. Interim responses (1xx) are
    skipped. `complete` is true when the whole response has been received. `framing` says how the end of the body is
    determined."""

    def __init__(self, method: str, subject: object, *, small: bool) -> None:
        self.head: ResponseHead | None = None
        self.complete = False
        self.framing = BodyFraming.NONE
        self._method = method
        self._subject = subject
        self._small = small
        self._first_bytes: bytearray | None = bytearray()  # the status line and one more byte; None after the check
        self._reason = b""
        self._names: list[bytes] = []  # names of the fields received since the last complete headers
        self._values: list[bytes] = []  # the values of these fields
        self._framing_bytes = 0  # bytes received since the last complete headers or body part
        self._remaining = 0  # body bytes that have not been received yet, if there is a Content-Length
        self._body_parts: list[bytes] = []  # parts of the body that were received but not copied out completely
        self._consumed = 0  # bytes of the first part that were copied out
        self._keep_alive = False
        self._has_surplus = False
        self._pending_error: RemoteError | None = None
        # The parser refers back to this object. It is dropped at the end of the response to break the cycle.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,  # allows folded lines (RFC 9112, 5.2); everything else is checked in this module
            lenient_chunked_length=True,  # Content-Length is ignored (RFC 9112, 6.3), and the connection is closed
            lenient_optional_cr_before_lf=True,  # Docker Hub once sent bare LF: docker/hub-feedback#1907
            lenient_spaces_after_chunk_size=True,
        )

    @property
    def has_surplus(self) -> bool:
        """Whether bytes were received after the end of the response."""
        return self._has_surplus

    @property
    def is_finished(self) -> bool:
        """Whether the response is complete and its whole body was copied out."""
        return self.complete and not self._body_parts

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can be used for another request after this response."""
        return self.is_finished and self._keep_alive and not self._has_surplus

    @property
    def known_remaining(self) -> int:
        """The number of body bytes that have not been copied out yet, or 0 if the length of the body is unknown."""
        return self._remaining + self._buffered if self.framing is BodyFraming.LENGTH else 0

    @property
    def unparsed_bytes(self) -> int:
        """The number of upcoming bytes on the connection that belong to the body and need no parsing.

        The caller may read up to this many bytes directly, and must then call `skip`. If the number is 0, the next
        bytes must be passed to `feed`."""
        if self.complete or self._body_parts or self.head is None:
            return 0
        if self.framing is BodyFraming.CLOSE:
            return _NO_LIMIT
        return self._remaining if self.framing is BodyFraming.LENGTH else 0

    def feed(self, data: bytes | memoryview) -> None:
        """Parse received bytes. `data` must not be empty. Raises RemoteError (bad_response)."""
        parser = self._parser
        if parser is None:
            self._has_surplus = True
            return
        if self._first_bytes is not None:
            self._check_start(data)
        self._framing_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # raised after 101, which is treated as an error, or after CONNECT
        except httptools.HttpParserError as error:
            if self._pending_error is None and not self.complete:
                raise self._parser_error(error) from error
            self._has_surplus = True
        if self._pending_error is not None:
            raise self._pending_error
        if self.complete:
            self._parser = None
            # After headers without a body, llhttp parses further bytes as a chunk size and does not report them.
            if self.framing is BodyFraming.NONE and data[-1] != ord("\n"):
                self._has_surplus = True
        elif self.head is None:
            if self._framing_bytes > MAX_HEAD:
                raise self._bad_response(f"the response headers are larger than {MAX_HEAD} bytes")
        elif self.framing is BodyFraming.CHUNKED and self._framing_bytes > _MAX_CHUNK_FRAMING:
            raise self._bad_response("the response body has malformed chunks", retryable=True)

    def feed_end(self) -> None:
        """Process the end of the connection. Raises NetworkError (truncated) if the response is not complete."""
        if self.complete:
            return
        if self.head is None:
            started = self._framing_bytes or self._names
            raise self._truncated_error("inside the response headers" if started else "before a response was received")
        if self.framing is not BodyFraming.CLOSE:
            raise self._truncated_error(
                f"{self._remaining} bytes before the end of the body" if self._remaining else "inside a chunked body"
            )
        self.complete = True
        self._parser = None

    def skip(self, count: int) -> None:
        """Record that the caller has read `count` of the `unparsed_bytes` directly from the connection."""
        if self.framing is BodyFraming.LENGTH:
            self._count_body_bytes(count)
            if self.complete:
                self._parser = None

    def copy_body(self, view: memoryview) -> int:
        """Copy received body bytes to `view` and drop them from the buffer of the parser.

        Returns the number of bytes copied, or 0 if the buffer is empty."""
        if not self._body_parts:
            return 0
        part = self._body_parts[0]
        count = min(len(view), len(part) - self._consumed)
        view[:count] = part[self._consumed : self._consumed + count]
        self._consumed += count
        if self._consumed == len(part):
            del self._body_parts[0]
            self._consumed = 0
        return count

    @property
    def _buffered(self) -> int:
        """The number of body bytes that were received but not copied out yet."""
        return sum(map(len, self._body_parts)) - self._consumed

    # ---- callbacks of httptools

    def on_status(self, reason: bytes) -> None:
        """Collect a part of the reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header field."""
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        """Process the complete headers of an interim or final response."""
        assert self._parser is not None  # noqa: S101 - the parser makes this call
        status = self._parser.get_status_code()
        headers = self._take_fields()
        reason, self._reason = self._reason.decode("latin-1"), b""
        self._framing_bytes = 0
        minor = _MINOR_VERSIONS.get(self._parser.get_http_version())
        if minor is None:
            self._set_error("the response is not HTTP/1.1", retryable=True)
        elif not 100 <= status < 600:
            self._set_error(f"the response has the invalid status {status:03}", retryable=True)
        elif status == 101:
            self._set_error("the server switches to a different protocol (status 101)")
        elif status >= 200 and self.head is None and self._pending_error is None:
            self.head = ResponseHead(minor, status, reason, headers)
            self._decide_framing(self.head)

    def on_body(self, data: bytes) -> None:
        """Collect a part of the body."""
        if self._pending_error is not None:
            return
        self._framing_bytes = 0
        if self.framing is BodyFraming.NONE:
            self._has_surplus = True
            return
        self._body_parts.append(data)
        if self.framing is BodyFraming.LENGTH:
            self._count_body_bytes(len(data))

    def on_chunk_header(self) -> None:
        """Detect bytes after a response without a body, which llhttp parses as a chunk."""
        if self.framing is BodyFraming.NONE:
            self._has_surplus = True

    def on_message_complete(self) -> None:
        """Process the end of a chunked body."""
        if self.head is not None and self.framing is BodyFraming.CHUNKED:
            self._take_fields()  # trailers are checked and then ignored
            self.complete = True

    def on_message_begin(self) -> None:
        """Detect the start of a second response, which is surplus."""
        if self.complete:
            self._has_surplus = True

    def _take_fields(self) -> Headers:
        """Check and return the fields that were collected since the last call.

        All fields are checked together, which is faster than checking each one."""
        names, values = b"\n".join(self._names), b"\n".join(self._values)
        count = len(self._names)
        self._names, self._values = [], []
        if not count:
            return Headers()
        if count > MAX_FIELDS:
            self._set_error(f"the response has more than {MAX_FIELDS} header lines")
        elif (lower_names := _parse_names(names)) is None or values.count(b"\n") != count - 1:
            self._set_error("the response has a malformed header line")
        elif b"\0" in values:
            self._set_error("a response header contains a NUL")
        else:
            texts = [text.strip(WHITE_SPACE) for text in values.decode("latin-1").split("\n")]
            return Headers.from_lists(lower_names, texts)
        return Headers()

    def _decide_framing(self, head: ResponseHead) -> None:
        """Determine how the body ends, and whether the connection can be kept open."""
        headers = head.headers
        options = headers.tokens("connection")
        self._keep_alive = "close" not in options and (head.minor >= 1 or "keep-alive" in options)
        codings, length = headers.tokens("transfer-encoding"), headers.get("content-length")
        if self._method in _NO_BODY_METHODS or head.status in _NO_BODY_STATUSES:
            self.complete = True
        elif codings:
            if codings != ["chunked"]:
                self._set_error(f"the response has an unsupported transfer coding: {printable(', '.join(codings), 80)}")
            self.framing = BodyFraming.CHUNKED
            # If there is also a Content-Length, or with HTTP/1.0, the framing may be wrong: RFC 9112, 6.1 and 6.3.
            self._keep_alive = self._keep_alive and length is None and head.minor >= 1
        elif length is not None:
            self.framing = BodyFraming.LENGTH
            self._remaining = int(length)
            self.complete = self._remaining == 0
            if self._remaining >= _MAX_LENGTH:
                self._set_error("the response has an invalid Content-Length")
        else:
            self.framing = BodyFraming.CLOSE
            self._keep_alive = False
            if self._small and head.minor >= 1 and "close" not in options:
                self._set_error("the response has no Content-Length and is not chunked")

    def _count_body_bytes(self, received: int) -> None:
        """Subtract received bytes from the remaining bytes of a body with a Content-Length."""
        self._remaining -= received
        self.complete = self._remaining == 0

    def _check_start(self, data: bytes | memoryview) -> None:
        """Check that a response starts with `HTTP/1.` and has no white space before its first header field.

        A response in a different protocol is thus rejected without waiting for a timeout. Source: RFC 9112, 2.2."""
        start = self._first_bytes
        assert start is not None  # noqa: S101 - checked by the caller
        searched = len(start)
        start += data
        if start[: len(_START)] != _START[: len(start)]:
            raise self._bad_response(f"the received bytes are not HTTP/1.1: {bytes(start[:40])!r}", retryable=True)
        end = start.find(b"\n", searched and searched - 1) + 1
        if 0 < end < len(start):
            self._first_bytes = None
            if start[end] in b" \t":
                raise self._bad_response("the response has a malformed header line")

    def _set_error(self, why: str, *, retryable: bool = False) -> None:
        """Store an error to be raised after llhttp has returned. Only the first error is kept."""
        if self._pending_error is None:
            self._pending_error = self._bad_response(why, retryable=retryable)

    def _parser_error(self, error: httptools.HttpParserError) -> RemoteError:
        """Return the RemoteError for an error from llhttp."""
        why = printable(str(error).lower(), 80)
        if self.head is not None:
            return self._bad_response(f"the response body has malformed chunks: {why}", retryable=True)
        started = bool(self._reason or self._names)
        return self._bad_response(f"the response has a malformed status line or header: {why}", retryable=not started)

    def _bad_response(self, why: str, *, retryable: bool = False) -> RemoteError:
        """Return a RemoteError (bad_response) that names the request and the reason `why`."""
        return RemoteError(f"{self._subject}: {why}", retryable=retryable)

    def _truncated_error(self, where: str) -> NetworkError:
        """Return a NetworkError (truncated) for a response that is incomplete. `where` says where it ended."""
        return NetworkError(f"{self._subject}: the connection ended {where}", code="truncated")


def _parse_names(names: bytes) -> tuple[str, ...] | None:
    """Split header field names at line feeds, and convert them to lower case. Return None if a name is not a token."""
    return _parse_common_names(names) if len(names) <= _MAX_CACHED_NAMES else _parse_common_names.__wrapped__(names)


@functools.lru_cache(maxsize=64)
def _parse_common_names(names: bytes) -> tuple[str, ...] | None:
    """Split field names as `_parse_names` does, and cache the result.

    Most responses from a registry have the same field names."""
    return tuple(names.decode("ascii").lower().split("\n")) if _NAMES.fullmatch(names) else None
