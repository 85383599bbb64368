"""Heads of requests and responses, as bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import MirrorError, RemoteError
from mirror.registry.http.headers import MAX_LINE, MAX_LINES, Headers, check_trailers, parse_head, request_head


def test_a_head_gives_status_reason_and_every_field() -> None:
    head = parse_head(
        b"HTTP/1.1 401 Un authorized\r\nA: 1\r\nWWW-Authenticate: Basic\r\nwww-authenticate:  Bearer \t\r"
    )
    assert (1, 401, "Un authorized") == (head.minor, head.status, head.reason)
    assert ["Basic", "Bearer"] == head.headers.all("Www-Authenticate")
    assert "Basic" == head.headers.get("WWW-AUTHENTICATE")
    assert None is head.headers.get("b")
    assert [("a", "1"), ("www-authenticate", "Basic"), ("www-authenticate", "Bearer")] == list(head.headers)


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
def test_status_lines_that_count(line: bytes, status: int) -> None:
    assert status == parse_head(line).status


@pytest.mark.parametrize(
    "head",
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
        b"HTTP/2 200 OK",
        b"HTTP/11 200 OK",
        b"http/1.1 200 OK",
        b"SSH-2.0-OpenSSH_9",
        b"<html>",
    ],
)
def test_a_broken_status_line_may_be_asked_for_again(head: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_head(head)
    assert ("bad_response", True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nno colon\r",
        b"HTTP/1.1 200 OK\r\n: no name\r",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r",
        b"HTTP/1.1 200 OK\r\n folded: first\r",
        b"HTTP/1.1 200 OK\r\nA: b\x00c\r",
        b"HTTP/1.1 200 OK\r\nA: b\rC: d\r",
        b"HTTP/1.1 200 OK\r\rA: b\r",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_LINES + b"A: b\r",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * MAX_LINE + b"\r",
        b"HTTP/1.1 200 " + b"b" * MAX_LINE + b"\r",
    ],
)
def test_heads_that_do_not(head: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_head(head)
    assert ("bad_response", False) == (caught.value.code, caught.value.retryable)


def test_the_bounds_themselves_are_allowed() -> None:
    parsed = parse_head(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * (MAX_LINES - 1) + b"A: b\r").headers
    assert MAX_LINES == len(parsed.all("a"))
    assert MAX_LINE - 3 == len(parse_head(b"HTTP/1.1 200 OK\r\nA: " + b"b" * (MAX_LINE - 3)).headers.get("a") or "")


def test_bare_line_feeds_and_folded_lines_are_read() -> None:
    assert {"a": "1", "b": "2 3"} == dict(parse_head(b"HTTP/1.1 200 OK\nA: 1\r\nB: 2\n\t3").headers)


def test_a_field_told_twice_differently_is_refused_where_one_is_wanted() -> None:
    headers = Headers([("Location", "/a"), ("location", "/a"), ("Link", "1"), ("Link", "2")])
    assert "/a" == headers.one("LOCATION")
    assert None is headers.one("absent")
    with pytest.raises(RemoteError):
        headers.one("link")


def test_lists_of_words_are_joined_over_lines() -> None:
    headers = Headers([("Connection", "Keep-Alive, , close"), ("connection", "TE")])
    assert ["keep-alive", "close", "te"] == headers.listed("Connection")
    assert [] == headers.listed("absent")
    assert "connection" in headers


def test_a_repr_shows_no_value() -> None:
    assert "secret" not in repr(Headers([("Authorization", "secret")]))


def test_a_request_head_is_exact() -> None:
    expected = b"GET /v2/?n=1 HTTP/1.1\r\nHost: h\r\nX: \xfc\r\n\r\n"
    assert expected == request_head("GET", "/v2/?n=1", [("Host", "h"), ("X", "ü")])


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb", "a\rb", "a\x00", "日"])
def test_a_value_that_would_leave_its_line_is_not_sent_nor_shown(value: str) -> None:
    with pytest.raises(ValueError, match="header") as caught:
        request_head("GET", "/", [("Authorization", value)])
    assert value not in str(caught.value)


def test_trailers_are_checked() -> None:
    check_trailers(b"")
    check_trailers(b"Digest: 1\r\nX: 2\r")
    with pytest.raises(RemoteError):
        check_trailers(b"nonsense\r")


@given(st.binary(max_size=300))
def test_of_any_bytes_only_our_errors_come(data: bytes) -> None:
    for head in (data, b"HTTP/1.1 200 OK\r\n" + data, b"HTTP/1.1 200 OK\r\nA: " + data):
        try:
            assert 100 <= parse_head(head).status <= 999
        except MirrorError as error:
            assert "bad_response" == error.code
