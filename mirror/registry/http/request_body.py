"""Sends request bodies. Sending stops if a response is received before the end of the body."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import NetworkError, RemoteError
from mirror.registry.http.connection import Connection
from mirror.registry.http.framing import poll_response
from mirror.registry.http.protocol import ResponseParser


def send_body(
    connection: Connection, parser: ResponseParser, body: Iterable[bytes | memoryview], length: int | None
) -> bool:
    """Send a request body: as `length` bytes, or in chunks if `length` is None. Return whether it was sent completely.

    Sending stops when a response is received or the peer closes the connection. Received bytes are passed to `parser`.

    Raises the errors of `body`, NetworkError, RemoteError (size_mismatch, bad_response), Cancelled. After an error, the
    connection must be closed, so that the peer does not accept the body as complete."""
    remaining = length
    for piece in body:
        view = memoryview(piece)
        if not view.nbytes:
            continue
        if remaining is not None:
            remaining -= view.nbytes
            if remaining < 0:
                raise RemoteError(f"the body to upload has more than {length} bytes", code="size_mismatch")
        if connection.is_readable() and poll_response(connection, parser):
            return False
        if length is not None:
            sent = _send_all(connection, parser, view)
        else:
            sent = (
                _send_all(connection, parser, memoryview(b"%x\r\n" % view.nbytes))
                and _send_all(connection, parser, view)
                and _send_all(connection, parser, memoryview(b"\r\n"))
            )
        if not sent:
            return False
    if remaining:
        raise RemoteError(f"the body to upload ended {remaining} bytes early", code="size_mismatch")
    return length is not None or _send_all(connection, parser, memoryview(b"0\r\n\r\n"))


def _send_all(connection: Connection, parser: ResponseParser, view: memoryview) -> bool:
    """Send all of `view`. Return False if a response was received, or the connection closed, before the end."""
    view = view.cast("B")
    while view.nbytes:
        try:
            count = connection.send_some(view)
        except NetworkError:
            # The peer may have responded early and then reset the connection. Its response may already be received.
            if poll_response(connection, parser) and parser.head is not None:
                return False
            raise
        if count == 0 and poll_response(connection, parser):
            return False
        view = view[count:]
    return True
