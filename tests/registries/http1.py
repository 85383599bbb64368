"""HTTP/1.1 as bytes: reads requests from a socket and writes replies, without adding anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import BinaryIO, cast

from tests.registries.exchange import Headers, Reply

_LINE = 1 << 17  # maximum size of a line in bytes
_BLOCK = 1 << 16


class BadRequest(OSError):
    """The request is not HTTP, or is truncated; the connection cannot be used again."""


class Incoming:
    """A request whose head has been read; the body is read on demand."""

    def __init__(self, reader: BinaryIO, method: str, target: str, headers: Headers) -> None:
        self.method, self.target, self.headers = method, target, headers
        self._reader = reader
        self._left = int(self.header("content-length") or 0)
        self._chunked = "chunked" in (self.header("transfer-encoding") or "").lower()
        self.received = 0  # bytes of the body

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def expects_continue(self) -> bool:
        return (self.header("expect") or "").lower() == "100-continue"

    @property
    def keeps_alive(self) -> bool:
        return "close" not in (self.header("connection") or "").lower()

    def body(self, limit: int | None = None) -> Iterator[bytes]:
        """Iterate over the body. At most `limit` bytes are read. Raises BadRequest if it is truncated."""
        pieces = self._chunks() if self._chunked else self._plain(limit)
        for piece in pieces:
            kept = piece if limit is None else piece[: limit - self.received]
            self.received += len(kept)
            yield kept
            if limit is not None and self.received >= limit:
                return

    def _plain(self, limit: int | None) -> Iterator[bytes]:
        left = self._left if limit is None else min(limit, self._left)
        while left:
            piece = self._reader.read1(min(left, _BLOCK)) if hasattr(self._reader, "read1") else b""
            if not piece:
                raise BadRequest("the body was cut")
            left -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := int(_line(self._reader).split(b";")[0], 16):
            piece = self._reader.read(size)
            if len(piece) < size or self._reader.read(2) != b"\r\n":
                raise BadRequest("a chunk was cut")
            yield piece
        while _line(self._reader):
            pass  # trailers


def reader_of(connection: socket.socket) -> BinaryIO:
    """Return a buffered reader; close it with the connection."""
    return cast(BinaryIO, connection.makefile("rb", buffering=_BLOCK))


def read_request(reader: BinaryIO) -> Incoming | None:
    """Read the head of the next request; None if the client has closed. Raises BadRequest."""
    first = reader.readline(_LINE)
    if not first:
        return None
    words = first.decode("latin-1").split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(f"not a request line: {first[:80]!r}")
    headers = []
    while line := _line(reader):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise BadRequest(f"not a header: {line[:80]!r}")
        headers.append((name, value.strip()))
    return Incoming(reader, words[0], words[1], headers)


def _line(reader: BinaryIO) -> bytes:
    line = reader.readline(_LINE)
    if not line.endswith(b"\n"):
        raise BadRequest("the head was cut")
    return line.rstrip(b"\r\n")


def head_bytes(reply: Reply) -> bytes:
    """Return status line and headers of a reply, with the empty line."""
    status = reply.reason or _reason(reply.status)
    names = {name.lower() for name, _ in reply.headers}
    headers = list(reply.headers)
    bodiless = reply.status < 200 or reply.status in (204, 304)
    if reply.length and not bodiless and not names & {"content-length", "transfer-encoding"}:
        headers.append(("Content-Length", str(len(reply.body))))
    lines = [f"HTTP/1.1 {reply.status} {status}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def simple_exchanges(connection: socket.socket) -> Iterator[tuple[Incoming, bytes]]:
    """Iterate over the requests of a connection with their bodies, until the client closes."""
    with reader_of(connection) as reader:
        while incoming := read_request(reader):
            if incoming.expects_continue:
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            yield incoming, b"".join(incoming.body())
            if not incoming.keeps_alive:
                return
