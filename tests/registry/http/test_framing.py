"""Whole answers, or none: heads and bodies read from a socket whose other end says what it likes."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Iterator
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import MirrorError, NetworkError, RemoteError
from mirror.registry.http.connection import Connection, Pace
from mirror.registry.http.framing import (
    TooBig,
    answer_began,
    body_of,
    content_length,
    read_beginning,
    read_head,
    read_small,
)
from mirror.util.cancellation import Stop


class Line:
    """A socket pair: `theirs` speaks, `ours` is the connection that listens."""

    def __init__(self, idle: float = 5.0) -> None:
        near, self.theirs = socket.socketpair()
        self.theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)
        self.ours = Connection(near, "the peer")
        self.ours.begin(Stop(), Pace(idle, monotonic() + idle), "GET it")

    def says(self, data: bytes, *, ends: bool = True) -> None:
        self.theirs.sendall(data)
        if ends:
            self.theirs.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def read_all(line: Line, method: str = "GET", *, small: bool = True, limit: int = 1000) -> tuple[int, bytes, bool]:
    """-> status, body, whether the connection may be used again."""
    head = read_head(line.ours)
    body = body_of(line.ours, method, head, small=small)
    data = read_small(body, head, limit, "GET it")
    return head.status, data, body.reusable


OK = b"HTTP/1.1 200 OK\r\n"

WHOLE = {
    "counted": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc", True),
    "counted twice alike": (OK + b"Content-Length: 3\r\nContent-Length: 3, 3\r\n\r\nabc", b"abc", True),
    "empty": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "bare line feeds": (b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc", b"abc", True),
    "bare line feeds and blank lines in the body": (
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\n\r\n\r\nx",
        b"\r\n\r\nx",
        True,
    ),
    "mixed line ends": (b"HTTP/1.1 200 OK\r\nContent-Length: 3\n\r\nabc", b"abc", True),
    "told to close": (OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "old": (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc", False),
    "old, kept alive": (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 3\r\n\r\nabc", b"abc", True),
    "surplus": (OK + b"Content-Length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n", b"abc", False),
    "until closed, old": (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc", False),
    "until closed, announced": (OK + b"Connection: close\r\n\r\nabc", b"abc", False),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "not modified with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", True),
    "no content, yet some": (b"HTTP/1.1 204 No Content\r\n\r\nxx", b"", False),
    "chunks": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        b"abc0123456789",
        True,
    ),
    "chunks with trailers": (
        OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n000\r\nX: y\r\nZ: w\r\n\r\n",
        b"a",
        True,
    ),
    "chunks, bare line feeds": (OK + b"Transfer-Encoding: chunked\r\n\r\n1\na\n0\n\n", b"a", True),
    "chunks and a length": (
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"a",
        False,
    ),
    "interim heads first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
        + OK
        + b"Content-Length: 1\r\n\r\na",
        b"a",
        True,
    ),
    "gzip": (
        OK
        + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(b"abc"))
        + gzip.compress(b"abc"),
        b"abc",
        True,
    ),
    "identity": (OK + b"Content-Encoding: identity\r\nContent-Length: 1\r\n\r\na", b"a", True),
}


@pytest.mark.parametrize("said", WHOLE.values(), ids=WHOLE)
def test_a_whole_answer_is_read(line: Line, said: tuple[bytes, bytes, bool]) -> None:
    answer, body, reusable = said
    line.says(answer, ends=b"close" in answer or b"1.0" in answer)
    assert (body, reusable) == read_all(line)[1:]


CUT = {
    "counted": OK + b"Content-Length: 3\r\n\r\nabc",
    "chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    "announced close in the head": OK + b"Connection: close\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
    "bare": b"HTTP/1.1 201 Created\nContent-Length: 2\n\nab",
}


@pytest.mark.parametrize("whole", CUT.values(), ids=CUT)
def test_an_answer_cut_anywhere_is_truncated(whole: bytes) -> None:
    told = []
    for cut in range(len(whole)):
        line = Line()
        line.says(whole[:cut])
        with pytest.raises(NetworkError) as caught:
            read_all(line)
        told.append((caught.value.code, caught.value.retryable))
        line.close()
    assert {("truncated", True)} == set(told)


REFUSED = {
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two lengths in one": OK + b"Content-Length: 3, 4\r\n\r\nabcd",
    "negative length": OK + b"Content-Length: -3\r\n\r\n",
    "signed length": OK + b"Content-Length: +3\r\n\r\nabc",
    "word for a length": OK + b"Content-Length: abc\r\n\r\n",
    "foreign digits": OK + "Content-Length: ³\r\n\r\n".encode("latin-1"),
    "length of 2^63": OK + b"Content-Length: 9223372036854775808\r\n\r\n",
    "length of many digits": OK + b"Content-Length: " + b"1" * 4000 + b"\r\n\r\n",
    "no length": OK + b"\r\nabc",
    "unknown transfer coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "bad hex": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "negative chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "chunk of 2^64": OK + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
    "chunk of 2^63": OK + b"Transfer-Encoding: chunked\r\n\r\n8000000000000000\r\n",
    "endless first line": OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 9000 + b"\r\n",
    "chunk without its line end": OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    "long extension": OK + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 10_000 + b"\r\na\r\n0\r\n\r\n",
    "endless extension": OK + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 100_000,
    "many trailers": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    "bad trailer": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\nnonsense\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "101 headers": OK + b"A: b\r\n" * 101 + b"\r\n",
    "a long header": OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n",
    "a long header without end": OK + b"A: " + b"b" * 140_000,
    "a long status line": b"HTTP/1.1 200 " + b"b" * 70_000,
    "many lines without end": OK + b"A: 0123456789\r\n" * 10_000,
    "brotli": OK + b"Content-Encoding: br\r\nContent-Length: 1\r\n\r\na",
    "gzip of gzip": OK + b"Content-Encoding: gzip, gzip\r\nContent-Length: 1\r\n\r\na",
    "no gzip at all": OK + b"Content-Encoding: gzip\r\nContent-Length: 30\r\n\r\n" + b"a" * 30,
    "not gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\na",
    "cut gzip": OK + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + gzip.compress(b"abcdefghijk")[:20],
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "HTTP/0.9": b"<html></html>",
    "four digits": b"HTTP/1.1 1000 OK\r\n\r\n",
    "blank": b"\r\n\r\n",
}


@pytest.mark.parametrize("said", REFUSED.values(), ids=REFUSED)
def test_a_malformed_answer_is_refused_at_once(line: Line, said: bytes) -> None:
    line.says(said, ends=False)
    with pytest.raises(RemoteError) as caught:
        read_all(line)
    assert "bad_response" == caught.value.code
    assert str(caught.value).startswith(("GET it: ", "the peer: "))


def test_a_small_answer_is_bounded_however_it_is_framed() -> None:
    big, packed = b"x" * 1001, gzip.compress(b"x" * 100_000)
    for said in (
        OK + b"Content-Length: 1001\r\n\r\n" + big,
        OK + b"Content-Length: 4611686018427387904\r\n\r\n" + big,
        OK + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + big,
        OK + b"Connection: close\r\n\r\n" + big,
        OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed,
    ):
        line = Line()
        line.says(said)
        with pytest.raises(TooBig):
            read_all(line)
        line.close()


def test_an_answer_of_exactly_the_limit_is_read(line: Line) -> None:
    line.says(OK + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n", ends=False)
    assert (200, b"x" * 1000, True) == read_all(line)


def test_what_a_failure_says_is_read_as_far_as_it_can_be(line: Line) -> None:
    line.says(OK + b"Content-Length: 9\r\n\r\nabc")
    head = read_head(line.ours)
    assert b"" == read_beginning(body_of(line.ours, "GET", head, small=True), head, 10, "it")


def test_an_error_page_that_is_too_big_is_not_read_to_its_end(line: Line) -> None:
    line.says(OK + b"Content-Length: 99\r\n\r\n" + b"x" * 99)
    head = read_head(line.ours)
    assert b"" == read_beginning(body_of(line.ours, "GET", head, small=True), head, 10, "it")


def test_an_answer_to_head_has_no_body_whatever_it_announces(line: Line) -> None:
    line.says(OK + b"Content-Length: 1000000\r\nContent-Encoding: br\r\n\r\n", ends=False)
    assert (200, b"", True) == read_all(line, "HEAD")


def test_a_body_with_an_answer_to_head_costs_the_connection(line: Line) -> None:
    line.says(OK + b"Content-Length: 3\r\n\r\nabc", ends=False)
    assert (200, b"", False) == read_all(line, "HEAD")


def test_the_body_of_a_blob_may_end_with_the_connection(line: Line) -> None:
    line.says(OK + b"\r\nabc")
    assert (200, b"abc", False) == read_all(line, small=False)


def test_a_big_body_goes_straight_into_the_readers_buffer(line: Line) -> None:
    blob = bytes(range(256)) * 4096
    line.says(OK + b"Content-Length: %d\r\n\r\n" % len(blob) + blob, ends=False)
    body = body_of(line.ours, "GET", read_head(line.ours), small=False)
    got, view = bytearray(), memoryview(bytearray(256 << 10))
    while count := body.readinto(view):
        got += view[:count]
    assert (blob, True, 0) == (bytes(got), body.whole, body.readinto(view))


@pytest.mark.parametrize(
    ("said", "began", "left"),
    [
        (b"", False, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201", True, b"HTTP/1.1 201"),
        (b"HTTP/1.1 101 Switching\r\n\r\n", True, b"HTTP/1.1 101 Switching\r\n\r\n"),
        (b"HTTP/1.1 413", True, b"HTTP/1.1 413"),
        (b"junk", True, b"junk"),
    ],
)
def test_an_interim_head_is_not_the_beginning_of_an_answer(line: Line, said: bytes, began: bool, left: bytes) -> None:
    line.ours.buffer += said
    line.says(b"")
    assert (began, left) == (answer_began(line.ours), bytes(line.ours.buffer))


def test_the_rest_of_an_interim_head_is_waited_for(line: Line) -> None:
    line.ours.buffer += b"HTTP/1.1 1"
    line.says(b"00 Continue\r\n\r\n", ends=False)
    assert not answer_began(line.ours)


def test_no_length_is_none() -> None:
    assert None is content_length([], "it")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", OK, OK + b"Transfer-Encoding: chunked\r\n\r\n", OK + b"Content-Length: 9\r\n\r\n"]),
)
def test_of_any_bytes_only_our_errors_come(data: bytes, before: bytes) -> None:
    line = Line()
    line.says(before + data)
    try:
        status, body, _ = read_all(line)
        assert 200 <= status <= 999
        assert len(body) <= len(data)
    except MirrorError as error:
        assert error.code in ("bad_response", "truncated")
    finally:
        line.close()
