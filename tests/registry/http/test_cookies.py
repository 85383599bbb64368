"""Cookies, which only the v1 protocol uses."""

from __future__ import annotations

from mirror.registry.http.cookies import CookieJar
from mirror.registry.http.url import Origin

HERE, THERE = Origin.parse("https://old.example.com"), Origin.parse("http://old.example.com")


def test_a_cookie_is_sent_only_to_its_origin() -> None:
    jar = CookieJar()
    assert jar.header(HERE) is None
    jar.store(HERE, ["session=abc; Path=/; HttpOnly", 'other="x y"', "=none", "no cookie", "big=" + "x" * 5000])
    jar.store(HERE, ["third=1", "third=2"])
    assert ("session=abc; third=2", None) == (jar.header(HERE), jar.header(THERE))
    jar.store(HERE, ["session=gone; Max-Age=0", "third=; max-age=-1"])
    assert jar.header(HERE) is None
    jar.store(HERE, [f"c{number}=1" for number in range(100)])
    assert 50 == len((jar.header(HERE) or "").split("; "))
    assert "CookieJar()" == repr(jar)


def test_a_cookie_is_not_sent_for_repositories_with_other_credentials() -> None:
    jar = CookieJar()
    jar.store(HERE, ["session=host"])
    jar.store(HERE, ["session=team"], "team")
    assert ["session=host", "session=team", None] == [jar.header(HERE, path) for path in ("", "team", "other")]
