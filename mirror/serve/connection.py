"""HTTP/1.1 on one connection: requests in, answers out, one after the other. Source: RFC 9112."""

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
from mirror.serve.messages import Problem, Request, Response, Stretch
from mirror.serve.tls import say_farewell
from mirror.util.file_reader import FileReader

IDLE = 60.0  # seconds that a connection may be silent
_LONGEST_LINE = 64 << 10  # bytes
_SMALL = 64 << 10  # bytes: read and sent together with the head
_DRAINED = 256 << 10  # bytes of a body that nobody wanted, which are passed over to keep the connection
_LINGER = 2.0  # seconds without a byte after which a body that nobody wanted is not passed over any more
_LINGERING = 64 << 20  # bytes of it
_PIECE = 256 << 10  # bytes
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;.*)?")


class Connection(BaseHTTPRequestHandler):
    """Handles a connection to its end, in the constructor. idle_since: while it waits for a request (monotonic)."""

    protocol_version = "HTTP/1.1"
    server_version = f"mirror/{__version__}"
    sys_version = ""
    disable_nagle_algorithm = True
    timeout = IDLE
    wbufsize = -1  # a head and a small body go together

    def __init__(self, connection: socket.socket, address: Any, answer: Callable[[Request], Response]) -> None:
        self._answer = answer
        self.idle_since: float | None = time.monotonic()
        self.opened = connection
        self._address = address

    def run(self) -> None:
        """Until either side ends it. Raises nothing for what is wrong with the connection."""
        try:
            if isinstance(self.opened, ssl.SSLSocket):
                self.opened.do_handshake()
            super().__init__(self.opened, self._address, None)  # type: ignore[arg-type]  # nothing asks for the server
            if isinstance(self.opened, ssl.SSLSocket):
                say_farewell(self.opened)
        except (OSError, MirrorError, Cancelled, ValueError):
            return  # it was cut, by them, or by us where a blob cannot be read to its end: nobody is there to be told

    def handle_one_request(self) -> None:
        self.idle_since = time.monotonic()
        self.raw_requestline = self.rfile.readline(_LONGEST_LINE + 1)
        self.close_connection = True
        if not self.raw_requestline:
            return
        if len(self.raw_requestline) > _LONGEST_LINE:
            self.requestline = self.request_version = self.command = ""
            self._send(Problem(414, "UNKNOWN", "the request line is too long").response())
            return
        if not self.parse_request():
            return
        self.idle_since = None  # who takes long over a head is as good as silent
        body = self._body()
        if isinstance(body, Problem):
            self.close_connection = True
            self._send(body.response())
            return
        self._send(self._answered(body))
        if not body.drained(_DRAINED):
            self._linger(body)

    def _linger(self, body: RequestBody) -> None:
        """End our side first: a connection that is closed before all was read takes the answer along."""
        self.close_connection = True
        socket.socket.shutdown(self.connection, socket.SHUT_WR)  # that of TLS would end our reading as well
        self.connection.settimeout(_LINGER)
        body.drained(_LINGERING)

    def _answered(self, body: RequestBody) -> Response:
        if not self.path.startswith("/"):
            return Problem(400, "UNKNOWN", "the target of a request begins with a slash").response()
        try:
            request = Request.of(self.command, self.path, self.headers.get, body)
        except ValueError:
            return Problem(400, "UNKNOWN", "the query has too many fields").response()
        return self._answer(request)

    def _body(self) -> RequestBody | Problem:
        codings, lengths = self.headers.get_all("Transfer-Encoding", []), self.headers.get_all("Content-Length", [])
        if codings:
            if lengths or [coding.strip().lower() for coding in codings] != ["chunked"]:
                return Problem(400, "UNKNOWN", "the length of the body cannot be told")
            return RequestBody(self.rfile, None)
        if len(set(lengths)) > 1 or (lengths and not re.fullmatch(r"[0-9]{1,18}", lengths[0])):
            return Problem(400, "UNKNOWN", "the length of the body cannot be told")
        return RequestBody(self.rfile, int(lengths[0]) if lengths else 0)

    def _send(self, response: Response) -> None:
        body = response.body
        self.request_version = self.protocol_version  # whatever they speak: without a status line nobody understands us
        try:
            self.send_response(response.status)
            self.send_header("Docker-Distribution-API-Version", "registry/2.0")
            for name, value in response.headers:
                self.send_header(name, value)
            if response.status not in (204, 304):
                length = body.length if isinstance(body, Stretch) else len(body)
                self.send_header("Content-Length", str(response.length if response.length is not None else length))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            if self.command != "HEAD" and response.status not in (204, 304):
                self._send_body(body)
        finally:
            if isinstance(body, Stretch):
                body.reader.__exit__(None, None, None)
        self.wfile.flush()

    def _send_body(self, body: bytes | Stretch) -> None:
        if isinstance(body, bytes):
            self.wfile.write(body)
        elif (
            isinstance(body.reader, FileReader) and body.length > _SMALL and not isinstance(self.opened, ssl.SSLSocket)
        ):
            self.wfile.flush()
            with io.FileIO(os.dup(body.reader.fileno())) as file:
                if self.connection.sendfile(file, body.reader.position, body.length) != body.length:
                    raise NetworkError("the file got shorter while it was sent", code="truncated")
        else:
            self._send_pieces(body)

    def _send_pieces(self, body: Stretch) -> None:
        buffer, left = memoryview(bytearray(min(_PIECE, max(1, body.length)))), body.length
        while left:
            count = body.reader.readinto(buffer[: min(len(buffer), left)])
            if not count:
                raise NetworkError("the blob ended early", code="truncated")
            self.wfile.write(buffer[:count])
            left -= count

    def handle_expect_100(self) -> bool:
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parser found wrong."""
        self.close_connection = True
        self.command = self.command or ""
        self._send(Problem(int(code), "UNKNOWN", message or "that cannot be understood").response())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: clients tell what they were answered."""


class RequestBody:
    """The body of a request, of a known length or in chunks. Source: RFC 9112, sections 6 and 7."""

    def __init__(self, file: io.BufferedIOBase | Any, length: int | None) -> None:
        self.length = length
        self._file = file
        self._left = length or 0  # of the body, or of the chunk
        self._ended = length == 0

    def readinto(self, buffer: memoryview) -> int:
        if self._ended:
            return 0
        if self.length is None and not self._left:
            self._next_chunk()
            if self._ended:
                return 0
        count: int = self._file.readinto1(buffer[: min(len(buffer), self._left)])
        if not count:
            raise NetworkError("the body of a request was cut", code="truncated")
        self._left -= count
        if not self._left:
            if self.length is None:
                self._line(b"")
            else:
                self._ended = True
        return count

    def _next_chunk(self) -> None:
        found = _CHUNK_SIZE.fullmatch(self._line(None))
        if found is None:
            raise NetworkError("the body of a request is not in chunks", code="bad_response")
        self._left = int(found[1], 16)
        if not self._left:
            for _ in range(100):
                if not self._line(None):
                    self._ended = True
                    return
            raise NetworkError("too many lines after the body of a request", code="bad_response")

    def _line(self, expected: bytes | None) -> bytes:
        line: bytes = self._file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n") or (expected is not None and line.strip(b"\r\n") != expected):
            raise NetworkError("the body of a request was cut", code="truncated")
        return line.rstrip(b"\r\n")

    def drained(self, limit: int) -> bool:
        """Pass over what nobody has read; False: it is too much."""
        buffer = memoryview(bytearray(min(limit, _PIECE)))
        while count := self.readinto(buffer):
            limit -= count
            if limit < 0:
                return False
        return True
