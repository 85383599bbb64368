"""Answers the requests on one HTTP/1.1 connection of the server, one at a time. Source: RFC 9112."""

from __future__ import annotations

import io
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from mirror import __version__
from mirror.errors import Cancelled, MirrorError, NetworkError
from mirror.serve.messages import BlobRange, Headers, HttpError, ServerRequest, ServerResponse
from mirror.serve.tls import send_close_notify
from mirror.util.file_reader import FileReader

IDLE_TIMEOUT = 60.0  # seconds without a byte after which a connection is closed
_MAX_LINE = 64 << 10  # bytes
_SENDFILE_MIN = 64 << 10  # bytes: larger bodies are sent with sendfile()
_MAX_DRAINED = 256 << 10  # bytes of an unread request body that are discarded to keep the connection open
_LINGER = 2.0  # seconds without a byte after which the server stops discarding an unread body
_MAX_LINGER_BYTES = 64 << 20  # bytes of an unread body that are discarded before the connection is closed
_BUFFER_BYTES = 256 << 10  # bytes
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?")


class ServerConnection(BaseHTTPRequestHandler):
    """A connection from a client to a server. `run` answers the requests that arrive on it.

    headers: sent with every response.
    idle_since: when the connection began to wait for a request (monotonic clock, seconds); None from the end of the
    headers of a request until its response has been sent."""

    protocol_version = "HTTP/1.1"
    server_version = f"mirror/{__version__}"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = IDLE_TIMEOUT
    wbufsize = -1  # buffered, so that the headers and a small body are sent together

    def __init__(
        self,
        connection: socket.socket,
        address: Any,
        handler: Callable[[ServerRequest], ServerResponse],
        headers: Headers = (),
    ) -> None:
        self._handler = handler
        self._headers = headers
        self.idle_since: float | None = time.monotonic()
        self.client_socket = connection
        self._address = address

    def run(self) -> None:
        """Answer requests until either side closes the connection. Connection errors are not raised."""
        try:
            if isinstance(self.client_socket, ssl.SSLSocket):
                self.client_socket.do_handshake()
            super().__init__(self.client_socket, self._address, None)  # type: ignore[arg-type]  # the server is not used
            if isinstance(self.client_socket, ssl.SSLSocket):
                send_close_notify(self.client_socket)
        except (OSError, MirrorError, Cancelled, ValueError):
            return  # the connection was lost, or a blob could not be read to its end: no response can be sent

    def handle_one_request(self) -> None:
        """Read one request and answer it."""
        self.idle_since = time.monotonic()
        self.raw_requestline = self.rfile.readline(_MAX_LINE + 1)
        self.close_connection = True
        if not self.raw_requestline:
            return
        if len(self.raw_requestline) > _MAX_LINE:
            self.requestline = self.request_version = self.command = ""
            self._send(HttpError(414, "UNKNOWN", "request line too long").to_response())
            return
        if not self.parse_request():
            return
        self.idle_since = None  # until the request headers were complete, the connection counted as idle
        body = self._request_body()
        if isinstance(body, HttpError):
            self.close_connection = True
            self._send(body.to_response())
            return
        self._send(self._handle(body))
        self.idle_since = time.monotonic()  # also if the client delays the rest of a body that nobody needs
        if not body.drain(_MAX_DRAINED):
            self._linger(body)

    def _linger(self, body: ConnectionBody) -> None:
        """Close the sending side of the connection, and discard the rest of the request body.

        If the socket were closed while unread bytes are left, TCP would reset the connection, and the client could lose
        the response."""
        self.close_connection = True
        socket.socket.shutdown(self.connection, socket.SHUT_WR)  # SSLSocket.shutdown would also end TLS for reading
        self.connection.settimeout(_LINGER)
        body.drain(_MAX_LINGER_BYTES)

    def _handle(self, body: ConnectionBody) -> ServerResponse:
        """Return the response to the request that was parsed last."""
        if not self.path.startswith("/"):
            return HttpError(400, "UNKNOWN", "the request target must begin with a slash").to_response()
        try:
            request = ServerRequest.parse(self.command, self.path, self.headers.get, body)
        except ValueError:
            return HttpError(400, "UNKNOWN", "too many parameters in the query").to_response()
        return self._handler(request)

    def _request_body(self) -> ConnectionBody | HttpError:
        """Return the body of the request, or an error if its length is ambiguous (RFC 9112, section 6.3)."""
        codings, lengths = self.headers.get_all("Transfer-Encoding", []), self.headers.get_all("Content-Length", [])
        if codings:
            if lengths or [coding.strip().lower() for coding in codings] != ["chunked"]:
                return HttpError(400, "UNKNOWN", "the length of the request body is ambiguous")
            return ConnectionBody(self.rfile, None)
        if len(set(lengths)) > 1 or (lengths and not re.fullmatch(r"[0-9]{1,18}", lengths[0])):
            return HttpError(400, "UNKNOWN", "the length of the request body is ambiguous")
        return ConnectionBody(self.rfile, int(lengths[0]) if lengths else 0)

    def _send(self, response: ServerResponse) -> None:
        """Send a response and close the reader of its body."""
        body = response.body
        self.request_version = self.protocol_version  # always send a status line, even to an HTTP/0.9 client
        try:
            self.send_response(response.status)
            for name, value in (*self._headers, *response.headers):
                self.send_header(name, value)
            if response.status not in (204, 304):
                length = body.length if isinstance(body, BlobRange) else len(body)
                self.send_header("Content-Length", str(response.length if response.length is not None else length))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD" and response.status not in (204, 304):
                self._send_body(body)
        finally:
            if isinstance(body, BlobRange):
                body.reader.__exit__(None, None, None)
        self.wfile.flush()

    def _send_body(self, body: bytes | BlobRange) -> None:
        """Send the body. Use sendfile() for a large file on a connection without TLS."""
        if isinstance(body, bytes):
            self.wfile.write(body)
        elif (
            isinstance(body.reader, FileReader)
            and body.length > _SENDFILE_MIN
            and not isinstance(self.client_socket, ssl.SSLSocket)
        ):
            self.wfile.flush()
            with io.FileIO(os.dup(body.reader.fileno())) as file:
                if self.connection.sendfile(file, body.reader.position, body.length) != body.length:
                    raise NetworkError("the file was truncated while it was sent", code="truncated")
        else:
            self._send_pieces(body)

    def _send_pieces(self, body: BlobRange) -> None:
        """Read the body into a buffer and send it, one buffer at a time."""
        buffer, left = memoryview(bytearray(min(_BUFFER_BYTES, max(1, body.length)))), body.length
        while left:
            count = body.reader.readinto(buffer[: min(len(buffer), left)])
            if not count:
                raise NetworkError("the blob is truncated", code="truncated")
            self.wfile.write(buffer[:count])
            left -= count

    def handle_expect_100(self) -> bool:
        """Send "100 Continue", and return True, so that the request is processed."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send an error response for a request that could not be parsed, and close the connection."""
        self.close_connection = True
        self.command = self.command or ""
        self._send(HttpError(int(code), "UNKNOWN", message or "malformed request").to_response())

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because clients report their own errors."""


class ConnectionBody:
    """The body of a request, read from its connection. Source: RFC 9112, sections 6 and 7.

    length: bytes, or None if the body is chunked."""

    def __init__(self, file: io.BufferedIOBase | Any, length: int | None) -> None:
        self.length = length
        self._file = file
        self._left = length or 0  # bytes left in the body, or in the current chunk
        self._ended = length == 0

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes into `buffer`. Return the number of bytes read, or 0 at the end of the body.

        Raises NetworkError."""
        if self._ended:
            return 0
        if self.length is None and not self._left:
            self._next_chunk()
            if self._ended:
                return 0
        count: int = self._file.readinto1(buffer[: min(len(buffer), self._left)])
        if not count:
            raise NetworkError("the request body is truncated", code="truncated")
        self._left -= count
        if not self._left:
            if self.length is None:
                self._read_line(b"")
            else:
                self._ended = True
        return count

    def _next_chunk(self) -> None:
        """Read the size line of the next chunk. If it is the last chunk, also read the trailer. Raises NetworkError."""
        found = _CHUNK_SIZE.fullmatch(self._read_line(None))
        if found is None:
            raise NetworkError("malformed chunk in the request body", code="bad_response")
        self._left = int(found[1], 16)
        if not self._left:
            for _ in range(100):
                if not self._read_line(None):
                    self._ended = True
                    return
            raise NetworkError("too many trailer lines after the request body", code="bad_response")

    def _read_line(self, expected: bytes | None) -> bytes:
        """Read a line, and return it without its line break.

        expected: the content that the line must have, or None if any content is allowed. Raises NetworkError
        (truncated)."""
        line: bytes = self._file.readline(_MAX_LINE)
        if not line.endswith(b"\n") or (expected is not None and line.strip(b"\r\n") != expected):
            raise NetworkError("the request body is truncated", code="truncated")
        return line.rstrip(b"\r\n")

    def drain(self, limit: int) -> bool:
        """Discard the rest of the body and return True. If it is longer than `limit` bytes, stop and return False."""
        buffer = memoryview(bytearray(min(limit, _BUFFER_BYTES)))
        while count := self.readinto(buffer):
            limit -= count
            if limit < 0:
                return False
        return True
