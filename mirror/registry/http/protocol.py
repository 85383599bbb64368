"""One HTTP/1.1 response, read from bytes without any input or output: heads, chunks, and where the response ends.

llhttp (through httptools) parses heads and chunked bodies. This module decides how the body is framed, bounds what
is not a body, and proves that the response is whole. Sources: RFC 9112, sections 2 to 6 and 9.
"""

from __future__ import annotations

import functools
import re
from enum import Enum

import httptools

from mirror.errors import NetworkError, RemoteError, printable
from mirror.registry.http.headers import WHITE_SPACE, Head, Headers

MAX_HEAD = 256 << 10  # bytes of a head
MAX_FIELDS = 100  # header lines of a head, or of the trailers
_MAX_CHUNK_FRAMING = 16 << 10  # bytes between two pieces of a chunked body: sizes, extensions, trailers
_LARGEST = 1 << 63  # bytes: a length of this size or more is not meant seriously
_ENDLESS = 1 << 62  # bytes
_LONGEST_CACHED = 2048  # bytes of names whose check is cached
_START = b"HTTP/1."
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:\n[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")  # tokens: RFC 9110, 5.6.2
_MINORS = {"1.0": 0, "1.1": 1}
_NO_BODY_METHODS = frozenset({"HEAD", "CONNECT"})
_NO_BODY_STATUSES = frozenset({204, 304})


class Framing(Enum):
    """What ends the body of a response. Source: RFC 9112, section 6.3."""

    NONE = "no body"
    LENGTH = "Content-Length"
    CHUNKED = "chunked"
    CLOSE = "the end of the connection"


class ResponseParser:
    """Parses the response to one request. Feed it what the connection receives, then look at `head` and take the body.

    method: of the request. subject: what errors are about. small: a body that only the end of the connection ends
    must be announced by `Connection: close` or HTTP/1.0.

    head: of the final response, once it is complete; interim heads (1xx) are dropped. complete: the end of the response
    was seen."""

    def __init__(self, method: str, subject: object, *, small: bool) -> None:
        self.head: Head | None = None
        self.complete = False
        self.framing = Framing.NONE
        self._method = method
        self._subject = subject
        self._small = small
        self._start: bytearray | None = bytearray()  # the status line and one byte more; None: it was checked
        self._reason = b""
        self._names: list[bytes] = []  # of fields
        self._values: list[bytes] = []
        self._framing_bytes = 0  # since the last complete head or piece of the body
        self._left = 0  # bytes of the body that are still to come, if it has a length
        self._pieces: list[bytes] = []
        self._first = 0  # bytes of the first piece that were taken
        self._persistent = False
        self._surplus = False
        self._refusal: RemoteError | None = None
        # Refers back to this object: dropped at the end of the response, so that no cycle is left to the collector.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,  # folded lines (RFC 9112, 5.2); what else it lets through is checked here
            lenient_chunked_length=True,  # the length is ignored (RFC 9112, 6.3), and the connection is not kept
            lenient_optional_cr_before_lf=True,  # Docker Hub once did so: docker/hub-feedback#1907
            lenient_spaces_after_chunk_size=True,
        )

    @property
    def surplus(self) -> bool:
        """Whether more came than the response."""
        return self._surplus

    @property
    def finished(self) -> bool:
        """Whether the response is complete and its body was taken."""
        return self.complete and not self._pieces

    @property
    def reusable(self) -> bool:
        """Whether the connection may serve another request."""
        return self.finished and self._persistent and not self._surplus

    @property
    def announced(self) -> int:
        """Bytes of the body that are certain to follow; 0 where only its end will show."""
        return self._left + self._waiting if self.framing is Framing.LENGTH else 0

    @property
    def unparsed(self) -> int:
        """How many of the bytes that follow are body and need no parser: a reader may `skip` them. 0: feed them."""
        if self.complete or self._pieces or self.head is None:
            return 0
        if self.framing is Framing.CLOSE:
            return _ENDLESS
        return self._left if self.framing is Framing.LENGTH else 0

    def feed(self, data: bytes | memoryview) -> None:
        """Parse what was received, which is not empty. Raises RemoteError (bad_response)."""
        parser = self._parser
        if parser is None:
            self._surplus = True
            return
        if self._start is not None:
            self._check_start(data)
        self._framing_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # after 101, which is refused, or after CONNECT
        except httptools.HttpParserError as error:
            if self._refusal is None and not self.complete:
                raise self._malformed(error) from error
            self._surplus = True
        if self._refusal is not None:
            raise self._refusal
        if self.complete:
            self._parser = None
            if self.framing is Framing.NONE and data[-1] != ord("\n"):  # of what llhttp takes for the size of a chunk
                self._surplus = True
        elif self.head is None:
            if self._framing_bytes > MAX_HEAD:
                raise self._error(f"a response's head has more than {MAX_HEAD} bytes")
        elif self.framing is Framing.CHUNKED and self._framing_bytes > _MAX_CHUNK_FRAMING:
            raise self._error("malformed chunks", retryable=True)

    def feed_end(self) -> None:
        """The peer has ended the connection. Raises NetworkError (truncated) unless that completes the response."""
        if self.complete:
            return
        if self.head is None:
            raise self._cut("inside the head" if self._framing_bytes or self._names else "before the response")
        if self.framing is not Framing.CLOSE:
            raise self._cut(f"{self._left} bytes before the end of the body" if self._left else "inside a chunk")
        self.complete = True
        self._parser = None

    def skip(self, count: int) -> None:
        """`count` of the `unparsed` bytes were received, and went to the reader of the body without `feed`."""
        if self.framing is Framing.LENGTH:
            self._count(count)
            if self.complete:
                self._parser = None

    def take(self, view: memoryview) -> int:
        """Move bytes of the body to the beginning of `view`; -> how many, 0: none are here."""
        if not self._pieces:
            return 0
        piece = self._pieces[0]
        count = min(len(view), len(piece) - self._first)
        view[:count] = piece[self._first : self._first + count]
        self._first += count
        if self._first == len(piece):
            del self._pieces[0]
            self._first = 0
        return count

    @property
    def _waiting(self) -> int:
        """Bytes of the body that are here."""
        return sum(map(len, self._pieces)) - self._first

    # Called by the parser.

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101 - it is what calls
        status = self._parser.get_status_code()
        headers = self._checked_fields()
        reason, self._reason = self._reason.decode("latin-1"), b""
        self._framing_bytes = 0
        minor = _MINORS.get(self._parser.get_http_version())
        if minor is None:
            self._refuse("not an HTTP/1.1 response", retryable=True)
        elif not 100 <= status < 600:
            self._refuse(f"a response with the status {status:03}, which HTTP does not have", retryable=True)
        elif status == 101:
            self._refuse("a response switches to another protocol")
        elif status >= 200 and self.head is None and self._refusal is None:
            self.head = Head(minor, status, reason, headers)
            self._decide_framing(self.head)

    def on_body(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._framing_bytes = 0
        if self.framing is Framing.NONE:
            self._surplus = True
            return
        self._pieces.append(data)
        if self.framing is Framing.LENGTH:
            self._count(len(data))

    def on_chunk_header(self) -> None:
        if self.framing is Framing.NONE:
            self._surplus = True

    def on_message_complete(self) -> None:
        if self.head is not None and self.framing is Framing.CHUNKED:
            self._checked_fields()  # of the trailers nothing is used
            self.complete = True

    def on_message_begin(self) -> None:
        if self.complete:
            self._surplus = True

    def _checked_fields(self) -> Headers:
        """The fields since the last call. All at once: that is half of what a head costs."""
        names, values = b"\n".join(self._names), b"\n".join(self._values)
        count = len(self._names)
        self._names, self._values = [], []
        if not count:
            return Headers()
        if count > MAX_FIELDS:
            self._refuse(f"a response has more than {MAX_FIELDS} header lines")
        elif (lowered := _lower_names(names)) is None or values.count(b"\n") != count - 1:
            self._refuse("a response has a malformed header line")
        elif b"\0" in values:
            self._refuse("a response has a NUL in its head")
        else:
            texts = [text.strip(WHITE_SPACE) for text in values.decode("latin-1").split("\n")]
            return Headers.parsed(lowered, texts)
        return Headers()

    def _decide_framing(self, head: Head) -> None:
        headers = head.headers
        words = headers.listed("connection")
        self._persistent = "close" not in words and (head.minor >= 1 or "keep-alive" in words)
        codings, length = headers.listed("transfer-encoding"), headers.get("content-length")
        if self._method in _NO_BODY_METHODS or head.status in _NO_BODY_STATUSES:
            self.complete = True
        elif codings:
            if codings != ["chunked"]:
                self._refuse(f"unknown transfer coding {printable(', '.join(codings), 80)}")
            self.framing = Framing.CHUNKED
            # RFC 9112, 6.1 and 6.3: the framing of such a response may be faulty.
            self._persistent = self._persistent and length is None and head.minor >= 1
        elif length is not None:
            self.framing = Framing.LENGTH
            self._left = int(length)
            self.complete = self._left == 0
            if self._left >= _LARGEST:
                self._refuse("a response has no usable length")
        else:
            self.framing = Framing.CLOSE
            self._persistent = False
            if self._small and head.minor >= 1 and "close" not in words:
                self._refuse("a response does not say how long it is")

    def _count(self, received: int) -> None:
        self._left -= received
        self.complete = self._left == 0

    def _check_start(self, data: bytes | memoryview) -> None:
        """Refuse another protocol at once, not at a timeout, and white space before the first field (RFC 9112, 2.2)."""
        start = self._start
        assert start is not None  # noqa: S101 - the caller looked
        searched = len(start)
        start += data
        if start[: len(_START)] != _START[: len(start)]:
            raise self._error(f"what came is not HTTP/1.1: {bytes(start[:40])!r}", retryable=True)
        end = start.find(b"\n", searched and searched - 1) + 1
        if 0 < end < len(start):
            self._start = None
            if start[end] in b" \t":
                raise self._error("a response has a malformed header line")

    def _refuse(self, why: str, *, retryable: bool = False) -> None:
        """Keep an error until the parser has returned. The first one stays."""
        if self._refusal is None:
            self._refusal = self._error(why, retryable=retryable)

    def _malformed(self, error: httptools.HttpParserError) -> RemoteError:
        why = printable(str(error).lower(), 80)
        if self.head is not None:
            return self._error(f"malformed chunks: {why}", retryable=True)
        begun = bool(self._reason or self._names)
        return self._error(f"a response has a malformed head: {why}", retryable=not begun)

    def _error(self, why: str, *, retryable: bool = False) -> RemoteError:
        return RemoteError(f"{self._subject}: {why}", retryable=retryable)

    def _cut(self, where: str) -> NetworkError:
        return NetworkError(f"{self._subject}: the connection ended {where}", code="truncated")


def _lower_names(names: bytes) -> tuple[str, ...] | None:
    """Names of fields, which line feeds separate, in lower case; None: one of them is not a token."""
    return _lower_known_names(names) if len(names) <= _LONGEST_CACHED else _lower_known_names.__wrapped__(names)


@functools.lru_cache(maxsize=64)
def _lower_known_names(names: bytes) -> tuple[str, ...] | None:
    """As `_lower_names`. Cached, because nearly all responses of a registry have the same names."""
    return tuple(names.decode("ascii").lower().split("\n")) if _NAMES.fullmatch(names) else None
