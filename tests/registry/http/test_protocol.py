"""The parser: valid and invalid responses, in pieces of any size; a truncated response is never complete."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.errors import MirrorError, NetworkError, RemoteError
from mirror.registry.http.headers import ResponseHead
from mirror.registry.http.protocol import MAX_FIELDS, MAX_HEAD, ResponseParser

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def parser_of(*pieces: bytes, method: str = "GET", small: bool = True, ends: bool = False) -> ResponseParser:
    """Return a parser that was fed `pieces`, and then the end of the connection if `ends`."""
    parser = ResponseParser(method, "GET it", small=small)
    for piece in pieces:
        parser.feed(piece)
    if ends:
        parser.feed_end()
    return parser


def body_of(parser: ResponseParser) -> bytes:
    view, body = memoryview(bytearray(7)), b""
    while count := parser.copy_body(view):
        body += view[:count]
    return body


def head_of(*pieces: bytes) -> ResponseHead:
    head = parser_of(*pieces).head
    assert head is not None
    return head


def in_bytes(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


# A response, its body, and whether the connection is reusable.
WHOLE = {
    "counted": (OK + b"Content-Length: 3\r\n\r\nabc", b"abc", True),
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
    "until closed, old": (b"HTTP/1.0 200 OK\r\n\r\nabc", b"abc", False),
    "until closed, announced": (OK + b"Connection: close\r\n\r\nabc", b"abc", False),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "not modified with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", b"", True),
    "chunks": (CHUNKED + b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", True),
    "chunks with padded sizes": (CHUNKED + b"3 \t\r\nabc\r\n0  \r\n\r\n", b"abc", True),
    "chunks with trailers": (
        OK + b"Transfer-Encoding: Chunked\r\n\r\n1\r\na\r\n000\r\nX: y\r\nZ: w\r\n\r\n",
        b"a",
        True,
    ),
    "chunks and a length": (
        OK + b"Transfer-Encoding: chunked\r\nContent-Length: 99\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"a",
        False,
    ),
    "a length and chunks": (
        OK + b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        b"a",
        False,
    ),
    "chunks in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
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
}


@pytest.mark.parametrize("sent_bytes", WHOLE.values(), ids=WHOLE)
def test_a_complete_response_is_read_in_pieces_of_any_size(sent_bytes: tuple[bytes, bytes, bool]) -> None:
    response, body, reusable = sent_bytes
    for pieces in ([response], list(in_bytes(response)), [response[:20], response[20:]]):
        parser = parser_of(*pieces, ends=b"close" in response or b"1.0" in response)
        assert (body, True, reusable) == (body_of(parser), parser.complete, parser.is_reusable)


@pytest.mark.parametrize("sent_bytes", WHOLE.values(), ids=WHOLE)
def test_a_truncated_response_is_an_error(sent_bytes: tuple[bytes, bytes, bool]) -> None:
    response, body, _ = sent_bytes
    until_closed = b"Content-Length" not in response and b"hunked" not in response and bool(body)
    # A body that ends with the connection seems complete after every byte.
    end = response.index(b"\r\n\r\n") + 4 if until_closed else len(response)
    for cut in range(end):
        parser = parser_of(response[:cut])
        assert not parser.complete
        with pytest.raises(NetworkError) as caught:
            parser.feed_end()
        assert ("truncated", True) == (caught.value.code, caught.value.retryable)


SURPLUS = {
    "another response": (OK + b"Content-Length: 3\r\n\r\nabc", OK),
    "junk": (OK + b"Content-Length: 3\r\n\r\nabc", b"x"),
    "after a close": (OK + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc", b"x"),
    "no content, yet some": (b"HTTP/1.1 204 No Content\r\n\r\n", b"xx"),
    "after chunks": (CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", b"HTTP"),
}


@pytest.mark.parametrize(("response", "more"), SURPLUS.values(), ids=SURPLUS)
def test_bytes_after_the_end_prevent_the_reuse_of_the_connection(response: bytes, more: bytes) -> None:
    for pieces in ([response + more], [response, more], list(in_bytes(response + more))):
        parser = parser_of(*pieces)
        assert body_of(parser) in (b"abc", b"")
        assert (True, False, True) == (parser.complete, parser.is_reusable, parser.has_surplus)


def test_a_response_to_head_has_no_body_regardless_of_its_headers() -> None:
    for field in (b"Content-Length: 1000000", b"Transfer-Encoding: chunked", b"Content-Encoding: br", b"X: y"):
        for pieces in ([OK + field + b"\r\n\r\n"], list(in_bytes(OK + field + b"\r\n\r\n"))):
            parser = parser_of(*pieces, method="HEAD")
            assert (True, True, b"") == (parser.complete, parser.is_reusable, body_of(parser))
        parser = parser_of(OK + field + b"\r\n\r\nabc", method="HEAD")
        assert (True, False, b"") == (parser.complete, parser.is_reusable, body_of(parser))


REFUSED = {
    "two lengths": OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length twice": OK + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "two lengths in one": OK + b"Content-Length: 3, 4\r\n\r\nabcd",
    "empty length": OK + b"Content-Length: \r\n\r\n",
    "negative length": OK + b"Content-Length: -3\r\n\r\n",
    "signed length": OK + b"Content-Length: +3\r\n\r\nabc",
    "word for a length": OK + b"Content-Length: abc\r\n\r\n",
    "length with a space in it": OK + b"Content-Length: 1 2\r\n\r\nabc",
    "folded length": OK + b"Content-Length: 1\r\n 2\r\n\r\nabc",
    "foreign digits": OK + "Content-Length: ³\r\n\r\n".encode("latin-1"),
    "length of 2^63": OK + b"Content-Length: 9223372036854775808\r\n\r\n",
    "length of many digits": OK + b"Content-Length: " + b"1" * 4000 + b"\r\n\r\n",
    "no length": OK + b"\r\nabc",
    "unknown transfer coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
    "transfer coding with foreign spaces": OK + b"Transfer-Encoding: chunked\xa0\r\n\r\n",
    "bad hex": CHUNKED + b"xyz\r\n",
    "negative chunk": CHUNKED + b"-1\r\n",
    "chunk of 2^64": CHUNKED + b"10000000000000000\r\n",
    "endless chunk size": CHUNKED + b"0" * 40_000,
    "chunk without its line end": CHUNKED + b"1\r\nabc\r\n",
    "chunks, bare line feeds": CHUNKED + b"1\na\n0\n\n",
    "endless extension": CHUNKED + b"1;" + b"x" * 40_000,
    "many trailers": CHUNKED + b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n",
    "endless trailers": CHUNKED + b"0\r\nX: " + b"y" * 40_000,
    "bad trailer": CHUNKED + b"0\r\nnonsense\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    "switching with all it takes": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nPRI"
    ),
    "101 headers": OK + b"A: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
    "an endless header": OK + b"A: " + b"b" * MAX_HEAD,
    "an endless status line": b"HTTP/1.1 200 " + b"b" * MAX_HEAD,
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "HTTP/0.9": b"<html></html>",
    "RTSP": b"RTSP/1.0 200 OK\r\n\r\n",
    "blank": b"\r\n\r\n",
    "blank, then a response": b"\r\n" + OK + b"Content-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("sent_bytes", REFUSED.values(), ids=REFUSED)
def test_a_malformed_response_is_an_error_at_once(sent_bytes: bytes) -> None:
    for size in (9, 1000, 16 << 10):  # the last one is the largest read of a connection
        pieces = in_pieces(sent_bytes, size)
        with pytest.raises(RemoteError) as caught:
            parser_of(*pieces)
        assert "bad_response" == caught.value.code
        assert str(caught.value).startswith("GET it: ")


def test_a_head_has_its_status_reason_and_all_fields() -> None:
    head = head_of(
        b"HTTP/1.1 401 Un author",
        b"ized\r\nA: 1\r\nWWW-Authenticate: Basic\r\nwww-authenticate:  Bearer \t\r\nContent-Length: 0\r\n\r\n",
    )
    assert (1, 401, "Un authorized") == (head.minor, head.status, head.reason)
    assert ["Basic", "Bearer"] == head.headers.get_all("Www-Authenticate")
    assert {"a": "1", "www-authenticate": "Bearer", "content-length": "0"} == dict(head.headers)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 200 OK", 200),
        (b"HTTP/1.1 200", 200),
        (b"HTTP/1.1 200 ", 200),
        (b"HTTP/1.0 599 what", 599),
        (b"HTTP/1.1 200 \xfcber", 200),
    ],
)
def test_valid_status_lines(line: bytes, status: int) -> None:
    assert status == head_of(line + b"\r\nContent-Length: 0\r\n\r\n").status


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 20",
        b"HTTP/1.1 1000 OK",
        b"HTTP/1.1 2000",
        b"HTTP/1.1 099 low",
        b"HTTP/1.1 000 none",
        b"HTTP/1.1 600 high",
        b"HTTP/1.1 999 higher",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.2 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/11 200 OK",
        b"http/1.1 200 OK",
        b"SSH-2.0-OpenSSH_9",
        b"<html>",
    ],
)
def test_a_malformed_status_line_is_retryable(line: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parser_of(line + b"\r\nContent-Length: 0\r\n\r\n")
    assert ("bad_response", True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(
    "fields",
    [
        b"no colon\r\n",
        b": no name\r\n",
        b"Content-Length : 5\r\n",
        b" folded: first\r\n",
        b"\tfolded: first\r\n",
        b"A: b\x00c\r\n",
        b"A: b\rC: d\r\n",
        b"\rA: b\r\n",
        b"\xfc: b\r\n",
        b"A b: c\r\n",
    ],
)
def test_invalid_header_lines(fields: bytes) -> None:
    sent_bytes = OK + fields + b"\r\n"
    for pieces in ([sent_bytes], list(in_bytes(sent_bytes))):
        with pytest.raises(RemoteError) as caught:
            parser_of(*pieces)
        assert ("bad_response", False) == (caught.value.code, caught.value.retryable)


def test_a_head_of_exactly_the_limits_is_valid() -> None:
    fields = b"A: b\r\n" * (MAX_FIELDS - 1)
    assert MAX_FIELDS - 1 == len(head_of(OK + fields + b"Content-Length: 0\r\n\r\n").headers.get_all("a"))
    before = OK + b"Content-Length: 0\r\nA: "
    long = b"b" * (MAX_HEAD - len(before) - 4)
    assert long.decode() == head_of(*in_pieces(before + long + b"\r\n\r\n", 1400)).headers.get("a")


def in_pieces(data: bytes, size: int) -> Sequence[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_a_head_in_many_packets_is_parsed_only_once() -> None:
    sent_bytes = OK + b"A: b\r\n" * (MAX_FIELDS - 1) + b"B: " + b"b" * 100_000
    started = process_time()
    parser_of(*in_bytes(sent_bytes))
    assert process_time() - started < 2.0  # seconds; parsing again for each packet would scan 5 GB


def test_folded_lines_are_read() -> None:
    sent_bytes = b"HTTP/1.1 200 OK\nA: 1\nB: 2\n\t3\nContent-Length: 0\n\n"
    for pieces in ([sent_bytes], list(in_bytes(sent_bytes))):
        assert {"a": "1", "b": "2\t3", "content-length": "0"} == dict(head_of(*pieces).headers)


def test_only_spaces_and_tabs_around_a_value_are_removed() -> None:
    head = head_of(OK + b"A: \t\xa0b\x85 \r\nContent-Length: 0\r\n\r\n")
    assert "\xa0b\x85" == head.headers.get("a")


def test_a_blob_may_end_with_the_connection() -> None:
    parser = parser_of(OK + b"\r\nabc", small=False)
    assert (b"abc", False) == (body_of(parser), parser.complete)
    parser.feed_end()
    assert (True, False) == (parser.complete, parser.is_reusable)


def test_bytes_of_a_body_with_a_known_length_need_not_be_fed() -> None:
    parser = parser_of(OK + b"Content-Length: 10\r\n\r\nabc")
    assert (10, 0) == (parser.known_remaining, parser.unparsed_bytes)
    assert b"abc" == body_of(parser)
    assert (7, 7) == (parser.known_remaining, parser.unparsed_bytes)
    parser.skip(6)
    with pytest.raises(NetworkError):
        parser.feed_end()
    parser.skip(1)
    assert (True, True, 0) == (parser.complete, parser.is_reusable, parser.unparsed_bytes)
    assert 0 == parser_of(CHUNKED + b"A\r\n").unparsed_bytes


def test_trailers_are_not_headers() -> None:
    parser = parser_of(CHUNKED + b"0\r\nDocker-Content-Digest: x\r\n\r\n")
    assert parser.head is not None
    assert (True, None) == (parser.complete, parser.head.headers.get("docker-content-digest"))


@settings(max_examples=300)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", OK, CHUNKED, OK + b"A: ", OK + b"Content-Length: 9\r\n\r\n"]),
    st.integers(1, 300),
)
def test_any_bytes_give_a_response_or_an_error_of_ours(data: bytes, before: bytes, size: int) -> None:
    try:
        parser = parser_of(*in_pieces(before + data, size), ends=True)
        assert parser.head is not None
        assert 200 <= parser.head.status < 600
        assert len(body_of(parser)) <= len(data)
    except MirrorError as error:
        assert error.code in ("bad_response", "truncated")


@settings(max_examples=300)
@given(st.sampled_from([sent_bytes[0] for sent_bytes in WHOLE.values()]), st.data())
def test_the_size_of_the_pieces_does_not_matter(response: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(response) - 1), unique=True, max_size=6)))
    pieces = [response[a:b] for a, b in zip([0, *cuts], [*cuts, len(response)], strict=True)]
    one, other = parser_of(response), parser_of(*pieces)
    assert one.head is not None
    assert other.head is not None
    assert (one.head.status, dict(one.head.headers)) == (other.head.status, dict(other.head.headers))
    assert (one.complete, one.is_reusable) == (other.complete, other.is_reusable) or body_of(one) == b""
    assert body_of(one) == body_of(other)
