"""Header fields, and request heads as bytes."""

from __future__ import annotations

import pytest

from mirror.errors import RemoteError
from mirror.registry.http.headers import Headers, request_head


def test_a_field_with_different_values_is_an_error_if_it_must_be_unique() -> None:
    headers = Headers([("Location", "/a"), ("location", "/a"), ("Link", "1"), ("Link", "2")])
    assert "/a" == headers.single("LOCATION", "GET /")
    assert None is headers.single("absent", "GET /")
    with pytest.raises(RemoteError, match=r"^GET /: the response has 2 link headers with different values"):
        headers.single("link", "GET /")


def test_tokens_of_several_lines_are_combined() -> None:
    headers = Headers([("Connection", "Keep-Alive, , close"), ("connection", "TE")])
    assert ["keep-alive", "close", "te"] == headers.tokens("Connection")
    assert [] == headers.tokens("absent")
    assert "connection" in headers


def test_only_spaces_and_tabs_are_white_space() -> None:
    headers = Headers([("Connection", "\xa0close, \x85close\x1c,\tclose ")])
    assert ["\xa0close", "\x85close\x1c", "close"] == headers.tokens("connection")


def test_a_repr_shows_no_value() -> None:
    assert "secret" not in repr(Headers([("Authorization", "secret")]))


def test_a_request_head_is_exact() -> None:
    expected = b"GET /v2/?n=1 HTTP/1.1\r\nHost: h\r\nX: \xfc\r\n\r\n"
    assert expected == request_head("GET", "/v2/?n=1", [("Host", "h"), ("X", "ü")])


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb", "a\rb", "a\x00", "日"])
def test_a_value_with_a_line_break_is_neither_sent_nor_shown(value: str) -> None:
    with pytest.raises(ValueError, match="header") as caught:
        request_head("GET", "/", [("Authorization", value)])
    assert value not in str(caught.value)
