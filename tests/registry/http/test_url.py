"""The parser of URLs, and what it rejects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.registry.http.url import BadUrl, Origin, join, split

BASE = Origin("https", "reg.example.com", 443)


@pytest.mark.parametrize(
    ("text", "origin", "target"),
    [
        ("https://reg.example.com", "https://reg.example.com", ""),
        ("HTTPS://REG.example.com:443/a", "https://reg.example.com", "/a"),
        ("https://reg.example.com./a", "https://reg.example.com", "/a"),
        ("http://h:5000/v2/?a=b#c", "http://h:5000", "/v2/?a=b"),
        ("http://h?x", "http://h", "?x"),
        ("https://[2001:DB8::0:1]:5000/", "https://[2001:db8::1]:5000", "/"),
        ("http://10.0.0.5/", "http://10.0.0.5", "/"),
        ("https://xn--bcher-kva.example/b\xfc", "https://xn--bcher-kva.example", "/b%FC"),
        ("https://under_score.example/%2F+%zz", "https://under_score.example", "/%2F+%zz"),
    ],
)
def test_an_absolute_url_is_split_into_origin_and_target(text: str, origin: str, target: str) -> None:
    found, rest = split(text)
    assert (origin, target) == (str(found), rest)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reg.example.com",
        "/v2/",
        "https:/x",
        "https:///x",
        "https:x",
        "https://",
        "https://:5000/",
        "https://h:0/",
        "https://h:65536/",
        "https://h:5x/",
        "https://h:/",
        "https://u@h/",
        "https://u:p@h/",
        "https://h\\@evil/",
        "https://h\t/",
        "https://h /",
        " https://h/",
        "https://h/a b",
        "https://h/\x00",
        "https://h/\x7f",
        "https://hö/",
        "https://日/",
        "https://h/日",
        "https://[::1/",
        "https://[::1]x/",
        "https://[::x]/",
        "https://[1:2]/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://127.1/",
        "https://127.0.0.01/",
        "https://1.2.3.4.5/",
        "https://evil.0x7f/",
        "https://a..b/",
        "https://.a/",
        f"https://{'x' * 64}.example.com/",
        f"https://{'x.' * 127}example/",
        "https://%31%32/",
        "ftp://h/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "unix:///run/x",
        "gopher://h/",
    ],
)
def test_ambiguous_urls_are_rejected(text: str) -> None:
    with pytest.raises(BadUrl) as caught:
        split(text)
    assert "u:p" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/v2/b?c=%2F", "/v2/b?c=%2F"),
        ("uploads/u", "/v2/a/blobs/uploads/u"),
        ("?x=1", "/v2/a/blobs/u?x=1"),
        ("../x?y=../z", "/v2/a/x?y=../z"),
        ("../../../../../x", "/x"),
        ("./x/.", "/v2/a/blobs/x/"),
        ("..", "/v2/a/"),
        ("a:b", None),
        ("x/a:b", "/v2/a/blobs/x/a:b"),
        ("//reg.example.com/y", "/y"),
        ("//reg.example.com", "/"),
        ("https://reg.example.com?q", "/?q"),
        ("/a/../b/%2e%2e/c", "/a/../b/%2e%2e/c"),
        ("/x#frag", "/x"),
    ],
)
def test_a_relative_url_is_resolved_against_the_request(text: str, target: str | None) -> None:
    if target is None:
        with pytest.raises(BadUrl):
            join(BASE, "/v2/a/blobs/u?old=1", text)
    else:
        assert (BASE, target) == join(BASE, "/v2/a/blobs/u?old=1", text)


def test_an_empty_reference_is_rejected() -> None:
    for text in ("", "#x"):
        with pytest.raises(BadUrl):
            join(BASE, "/", text)


def test_an_origin_has_no_path() -> None:
    assert "https://h:5000" == str(Origin.parse("https://h:5000/"))
    with pytest.raises(BadUrl):
        Origin.parse("https://h/v2")


@given(st.text(max_size=40))
def test_any_text_gives_a_valid_origin_or_an_error(text: str) -> None:
    for candidate in (text, f"https://{text}", f"https://h/{text}"):
        try:
            origin, target = join(BASE, "/", candidate)
        except BadUrl:
            continue
        assert Origin.parse(str(origin)) == origin
        assert target.isascii()
        assert target.startswith("/")
        assert not set(target) & set(" \\\r\n\t\x00#")
