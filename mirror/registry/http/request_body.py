"""Sending a request's body, with an eye on a response that comes before its end."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import NetworkError, RemoteError
from mirror.registry.http.connection import Connection
from mirror.registry.http.framing import poll_response
from mirror.registry.http.protocol import ResponseParser


def send_body(
    connection: Connection, parser: ResponseParser, body: Iterable[bytes | memoryview], length: int | None
) -> bool:
    """Send `body` as `length` bytes, or in chunks where that is None. False: a response came before its end.

    parser: of the response; it is fed what comes meanwhile.

    What the body raises goes through; then, and for any other error, the connection is not to be used again:
    the peer must never see a body that looks complete. Raises NetworkError, RemoteError
    (size_mismatch, bad_response), Cancelled."""
    left = length
    for piece in body:
        view = memoryview(piece)
        if not view.nbytes:
            continue
        if left is not None:
            left -= view.nbytes
            if left < 0:
                raise RemoteError("more bytes to upload than were announced", code="size_mismatch")
        if connection.readable() and poll_response(connection, parser):
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
    if left:
        raise RemoteError(f"the bytes to upload ended {left} early", code="size_mismatch")
    return length is not None or _send_all(connection, parser, memoryview(b"0\r\n\r\n"))


def _send_all(connection: Connection, parser: ResponseParser, view: memoryview) -> bool:
    """False: a response came first."""
    view = view.cast("B")
    while view.nbytes:
        try:
            count = connection.send_some(view)
        except NetworkError:
            # A peer that answers early and closes resets what we still send: its response may be here.
            if poll_response(connection, parser) and parser.head is not None:
                return False
            raise
        if count == 0 and poll_response(connection, parser):
            return False
        view = view[count:]
    return True
