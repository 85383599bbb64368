"""Heads and bodies that are read from a socket: complete, or an error."""

from __future__ import annotations

import contextlib
import errno
import gzip
import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from mirror.errors import NetworkError, RemoteError
from mirror.registry.http.connection import Connection, Timeouts
from mirror.registry.http.framing import (
    ResponseBody,
    TooBig,
    poll_response,
    read_error_body,
    read_head,
    read_small,
)
from mirror.registry.http.headers import ResponseHead
from mirror.registry.http.protocol import ResponseParser
from mirror.util.cancellation import Stop


class KeepaliveTimeoutSocket(socket.socket):
    """A socket whose peer did not respond to TCP keepalive: the next read fails, and later reads return an end."""

    def recv_into(self, *_: object) -> int:
        if self.gettimeout() is None:
            return 0
        self.settimeout(None)
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")


def test_a_keepalive_timeout_is_not_the_end_of_a_body() -> None:
    near, far = socket.socketpair()
    with far, contextlib.closing(Connection(KeepaliveTimeoutSocket(fileno=near.detach()), "the peer")) as connection:
        connection.start_exchange(Stop(), Timeouts(5.0), "GET it")
        with pytest.raises(NetworkError) as caught:
            connection.receive()
    assert ("net_error", True) == (caught.value.code, caught.value.retryable)


class ConnectedPair:
    """A socket pair: the test sends to `theirs`, and `ours` is the connection that reads."""

    def __init__(self, idle: float = 5.0) -> None:
        near, self.theirs = socket.socketpair()
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.ours = Connection(near, "the peer")
        self.ours.start_exchange(Stop(), Timeouts(idle, monotonic() + idle), "GET it")

    def send(self, data: bytes, *, ends: bool = True) -> None:
        self.theirs.sendall(data)
        if ends:
            self.theirs.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def pair() -> Iterator[ConnectedPair]:
    pair = ConnectedPair()
    yield pair
    pair.close()


def open_response(pair: ConnectedPair, method: str = "GET", *, small: bool = True) -> tuple[ResponseHead, ResponseBody]:
    parser = ResponseParser(method, "GET it", small=small)
    return read_head(pair.ours, parser), ResponseBody(pair.ours, parser)


def read_all(
    pair: ConnectedPair, method: str = "GET", *, small: bool = True, limit: int = 1000
) -> tuple[int, bytes, bool]:
    """Return the status, the body, and whether the connection is reusable."""
    head, body = open_response(pair, method, small=small)
    data = read_small(body, head, limit, "GET it")
    return head.status, data, body.is_reusable


OK = b"HTTP/1.1 200 OK\r\n"
PACKED = gzip.compress(b"abc")

WHOLE = {
    "counted": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc", True),
    "surplus": (OK + b"Content-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n", b"abc", False),
    "until closed": (OK + b"Connection: close\r\n\r\nabc", b"abc", False),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"abc", True),
    "gzip": (OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(PACKED) + PACKED, b"abc", True),
    "identity": (OK + b"Content-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc", b"abc", True),
}


@pytest.mark.parametrize("sent_bytes", WHOLE.values(), ids=WHOLE)
def test_a_complete_response_is_read(pair: ConnectedPair, sent_bytes: tuple[bytes, bytes, bool]) -> None:
    response, body, reusable = sent_bytes
    pair.send(response, ends=b"close" in response)
    assert (200, body, reusable) == read_all(pair)


CUT = {
    "counted": OK + b"Content-Length: 3\r\n\r\nabc",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "announced close in the head": OK + b"Connection: close\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "bare": b"HTTP/1.1 201 Created\nContent-Length: 2\n\nab",
}


@pytest.mark.parametrize("whole", CUT.values(), ids=CUT)
def test_a_response_that_ends_early_is_truncated(whole: bytes) -> None:
    codes = []
    for cut in range(len(whole)):
        pair = ConnectedPair()
        pair.send(whole[:cut])
        with pytest.raises(NetworkError) as caught:
            read_all(pair)
        codes.append((caught.value.code, caught.value.retryable))
        pair.close()
    assert {("truncated", True)} == set(codes)


REFUSED = {
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "bad chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "brotli": OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\na",
    "gzip of gzip": OK + b"Content-Encoding: gzip, gzip\r\nContent-Length: 1\r\n\r\na",
    "no gzip at all": OK + b"Content-Encoding: gzip\r\nContent-Length: 30\r\n\r\n" + b"a" * 30,
    "not gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\na",
    "cut gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + gzip.compress(b"abcdefghijk")[:20],
}


@pytest.mark.parametrize("sent_bytes", REFUSED.values(), ids=REFUSED)
def test_a_malformed_response_is_an_error_at_once(pair: ConnectedPair, sent_bytes: bytes) -> None:
    pair.send(sent_bytes, ends=False)
    with pytest.raises(RemoteError) as caught:
        read_all(pair)
    assert "bad_response" == caught.value.code
    assert str(caught.value).startswith("GET it: ")


def test_a_small_response_is_limited_with_every_framing() -> None:
    big, packed = b"x" * 1001, gzip.compress(b"x" * 100_000)
    for sent_bytes in (
        OK + b"Content-Length: 1001\r\n\r\n" + big,
        OK + b"Content-Length: 4611686018427387904\r\n\r\n" + big,
        OK + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + big,
        OK + b"Connection: close\r\n\r\n" + big,
        OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed,
    ):
        pair = ConnectedPair()
        pair.send(sent_bytes)
        with pytest.raises(TooBig):
            read_all(pair)
        pair.close()


def test_a_response_of_exactly_the_limit_is_read(pair: ConnectedPair) -> None:
    pair.send(OK + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n", ends=False)
    assert (200, b"x" * 1000, True) == read_all(pair)


def test_the_body_of_an_error_response_is_empty_if_it_cannot_be_read(pair: ConnectedPair) -> None:
    pair.send(OK + b"Content-Length: 9\r\n\r\nabc")
    head, body = open_response(pair)
    assert b"" == read_error_body(body, head, 10, "it")


def test_an_error_page_that_is_too_large_is_not_read_to_its_end(pair: ConnectedPair) -> None:
    pair.send(OK + b"Content-Length: 99\r\n\r\n" + b"x" * 99)
    head, body = open_response(pair)
    assert b"" == read_error_body(body, head, 10, "it")


def test_the_body_of_a_blob_may_end_with_the_connection(pair: ConnectedPair) -> None:
    pair.send(OK + b"\r\nabc")
    assert (200, b"abc", False) == read_all(pair, small=False)


def test_a_large_body_is_read_directly_into_the_buffer(pair: ConnectedPair) -> None:
    blob = bytes(range(256)) * 4096
    pair.send(OK + b"Content-Length: %d\r\n\r\n" % len(blob) + blob, ends=False)
    _, body = open_response(pair, small=False)
    got, view, most = bytearray(), memoryview(bytearray(256 << 10)), 0
    while count := body.readinto(view):
        got += view[:count]
        most = max(most, count)
    assert (blob, True, 0) == (bytes(got), body.is_complete, body.readinto(view))
    assert most > 16 << 10, "read by more than the connection holds itself"


@pytest.mark.parametrize(
    ("sent_bytes", "ends", "came"),
    [
        (b"", False, False),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False, False),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201", False, False),
        (b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n", False, True),
        (b"", True, True),
    ],
)
def test_an_interim_head_is_not_a_response(pair: ConnectedPair, sent_bytes: bytes, ends: bool, came: bool) -> None:
    pair.send(sent_bytes, ends=ends)
    assert came == poll_response(pair.ours, ResponseParser("PUT", "PUT it", small=True))


def test_a_response_of_another_protocol_is_an_error_while_sending(pair: ConnectedPair) -> None:
    pair.send(b"junk", ends=False)
    with pytest.raises(RemoteError):
        poll_response(pair.ours, ResponseParser("PUT", "PUT it", small=True))
