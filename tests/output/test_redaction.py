from __future__ import annotations

import base64
import html
import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, quote_plus
from xml.sax import saxutils

import pytest

from mirror.errors import RemoteError, printable
from mirror.output.redaction import HIDDEN, Redactor

SECRETS = [
    "correct horse battery staple",
    'pa"ss\\wörd\u2028/+=?&#%',
    "dckr_pat_aB3-xYz_0123456789",
    "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJib2IifQ.c2lnbmF0dXJl",
    "p4ss",
    "a&b<c>d'e\"f-and-more",
    "\ttab\x1b[31m and\nnewline",
]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def encodings(secret: str, user: str) -> dict[str, str]:
    return {
        "raw": secret,
        "base64": b64(secret),
        "base64url": base64.urlsafe_b64encode(secret.encode()).decode(),
        "basic": b64(f"{user}:{secret}"),
        "percent": quote(secret, safe=""),
        "path": quote(secret),
        "form": quote_plus(secret),
        "json": json.dumps(secret)[1:-1],
        "json, not only ASCII": json.dumps(secret, ensure_ascii=False)[1:-1],
        "json in json": json.dumps(json.dumps(secret)[1:-1])[1:-1],
        "printable": printable(secret, 1000),
        "printable in json": json.dumps(printable(secret, 1000))[1:-1],
        "repr": repr(secret)[1:-1],
        "html": html.escape(secret),
        "html of Go": html.escape(secret).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
        "xml": saxutils.escape(secret, {'"': "&quot;", "'": "&apos;"}),
        "json of Go": json.dumps(secret, ensure_ascii=False)[1:-1]
        .replace("&", "\\u0026")
        .replace("<", "\\u003c")
        .replace(">", "\\u003e"),
        "in an error": str(RemoteError(f"answer: {secret}", hint=secret)),
    }


@pytest.mark.parametrize("secret", SECRETS)
def test_a_known_secret_is_hidden_in_every_encoding(secret: str) -> None:
    redact = Redactor()
    redact.add(secret, "bob")
    for name, disguise in encodings(secret, "bob").items():
        for text in (disguise, f"before {disguise} after", f"{disguise}{disguise}", f"x={disguise}&y=1"):
            clean = redact(text)
            assert HIDDEN in clean
            assert {} == {
                other: hidden for other, hidden in encodings(secret, "bob").items() if hidden.rstrip("=") in clean
            }, name


@pytest.mark.parametrize("secret", [secret for secret in SECRETS if len(secret) > 16])
def test_a_known_secret_whose_end_was_cut_off_is_hidden(secret: str) -> None:
    redact = Redactor()
    redact.add(secret)
    for kept in range(12, len(secret)):
        for text in (f"answer {secret[:kept]}…", f"answer {secret[:kept]}… and more", f"answer {secret[:kept]}"):
            assert secret[:12] not in redact(text)


def test_words_that_only_begin_like_a_secret_are_kept() -> None:
    redact = Redactor()
    redact.add("registry.example.com-pw")
    assert "see registry.example.com/app" == redact("see registry.example.com/app")


def test_a_short_secret_is_hidden_in_credentials_only() -> None:
    redact = Redactor()
    redact.add("abc", "bob")
    assert f"tag abc, {HIDDEN}" == redact(f"tag abc, {b64('bob:abc')}")


def test_the_longer_of_two_secrets_is_hidden_whole() -> None:
    redact = Redactor()
    redact.add("abcdefghijklm")
    redact.add("abcdefghijklmnop")
    assert f"{HIDDEN} {HIDDEN}" == redact("abcdefghijklmnop abcdefghijklm")


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("proxy-authorization: Basic QQ==, x", "proxy-authorization: ***"),
        ("Set-Cookie: session=1; Secure", "Set-Cookie: ***"),
        ("Cookie: a=b\r\nHost: h", "Cookie: ***\r\nHost: h"),
        ("X-Docker-Token: signature=1,access=read", "X-Docker-Token: ***"),
        ("{'X-Registry-Auth': 'e30', 'Accept': '*/*'}", "{'X-Registry-Auth': '***', 'Accept': '*/*'}"),
        ("{'Authorization': b'Basic eA==', 'Accept': 1}", "{'Authorization': b'***', 'Accept': 1}"),
        ("[('Cookie', 'a=b'), ('Host', 'h')]", "[('Cookie', '***'), ('Host', 'h')]"),
        ("sent Bearer eyJhbGci.eyJz.c2ln", "sent Bearer ***"),
        ("sent Basic dXNlcjpwYXNz", "sent Basic ***"),
        ("https://bob:pw@h.example/v2/", "https://***@h.example/v2/"),
        ("proxy http://bob:p@ss@h:3128", "proxy http://***@h:3128"),
        ("GET https://s3/x?X-Amz-Signature=9f&n=100", "GET https://s3/x?X-Amz-Signature=***&n=100"),
        ("https://cdn/x?opaque", "https://cdn/x?***"),
        ("https://cdn/x#access_token=1", "https://cdn/x#access_token=***"),
        (
            "/v2/a/blobs/uploads/1?_state=Zm9v&digest=sha256:00&mount=sha256:11&from=b",
            "/v2/a/blobs/uploads/1?_state=***&digest=sha256:00&mount=sha256:11&from=b",
        ),
        ("/v2/a/tags/list?n=100&last=v1", "/v2/a/tags/list?n=100&last=v1"),
        ("/token?service=s&scope=repository:a:pull&account=b", "/token?service=s&scope=repository:a:pull&account=***"),
        ("/v2/a/referrers/d?artifactType=x", "/v2/a/referrers/d?artifactType=x"),
        ('{"token": "a\\"b", "expires_in": 60}', '{"token": "***", "expires_in": 60}'),
        ('{"access_token":"a","refresh_token":"b"}', '{"access_token":"***","refresh_token":"***"}'),
        ('{\\"identitytoken\\": \\"a\\", \\"b\\": 1}', '{\\"identitytoken\\": \\"***\\", \\"b\\": 1}'),
        ('{"auths": {"h": {"auth": "dTpw"}}}', '{"auths": {"h": {"auth": "***"}}}'),
        ('{"Secret": "x", "Username": "bob"}', '{"Secret": "***", "Username": "bob"}'),
        ('body {"password": "cut…', 'body {"password": "***'),
        ("grant_type=refresh_token&refresh_token=abc", "grant_type=refresh_token&refresh_token=***"),
    ],
)
def test_text_that_matches_the_pattern_of_a_secret_is_hidden(text: str, clean: str) -> None:
    assert clean == Redactor()(text)
    assert clean == Redactor()(clean)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "copied sha256:aaaa to localhost:5000/team/app:v1",
        "basic authentication failed for user bob at auth.example.com",
        "the token service refused: 401 unauthorized",
        "what? no tag is selected",
        'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull"',
        "https://registry.example.com/v2/team/app/manifests/v1",
        "secret-sync/cookie-jar:v1 on authorization.example.com",
    ],
)
def test_ordinary_text_is_kept(text: str) -> None:
    redact = Redactor()
    redact.add("something else", "bob")
    assert text == redact(text)


def test_a_text_that_cannot_contain_a_secret_is_returned_unchanged() -> None:
    redact = Redactor()
    redact.add("something else", "bob")
    line = json.dumps({"event": "blob", "digest": "sha256:" + "a" * 64, "target": "localhost:5000/team/app"})
    assert not redact.may_contain_secret(line)
    assert redact(line) is line


def test_a_secret_is_hidden_on_every_thread_as_soon_as_it_is_added() -> None:
    redact = Redactor()
    secrets = [f"secret number {n:03}" for n in range(100)]

    def work(secret: str) -> str:
        redact.add(secret)
        return redact(f"<{secret}>")

    with ThreadPoolExecutor(8) as pool:
        assert {f"<{HIDDEN}>"} == set(pool.map(work, secrets))
    assert {f"<{HIDDEN}>"} == {redact(f"<{secret}>") for secret in secrets}


def test_a_long_hostile_text_is_redacted_in_bounded_time() -> None:
    redact = Redactor()
    redact.add("a" * 40)
    for text in ("a" * 100_000, '{"token": "' + "\\" * 100_000, "://" * 50_000, "?a=" * 50_000, "Cookie: " * 10_000):
        assert len(redact(text)) <= len(text)
