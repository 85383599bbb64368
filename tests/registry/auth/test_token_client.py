"""Requests to token services, and their responses."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.errors import AuthError, MirrorError
from mirror.registry.auth.credentials import Credential
from mirror.registry.auth.token_client import MAX_BYTES, MAX_LIFETIME, MIN_LIFETIME, Token, TokenClient
from mirror.registry.http.url_policy import Destination, Origin
from mirror.util.cancellation import Stop, Work

SERVICE = Destination(Origin("https", "auth.example.com", 443), "/token", credentials=True)
WORK = Work(Stop())
ACME = Credential("acme", "s€cret", origin="env HUB_TOKEN")

MIN, MAX = MIN_LIFETIME, MAX_LIFETIME  # seconds


@dataclass
class Reply:
    status: int
    body: bytes


class Service:
    """A token service that sends these responses in turn, and repeats the last one."""

    def __init__(self, *replies: tuple[int, bytes]) -> None:
        self.replies = list(replies)
        self.calls: list[tuple[str, list[tuple[str, str]], Mapping[str, str] | None, tuple[str, str] | None]] = []

    def __call__(
        self,
        method: str,
        destination: Destination,
        *,
        params: Sequence[tuple[str, str]] = (),
        form: Mapping[str, str] | None = None,
        basic: tuple[str, str] | None = None,
        work: Work,
        kind: str = "token",
    ) -> Reply:
        assert SERVICE == destination
        self.calls.append((method, list(params), form, basic))
        return Reply(*(self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]))


def fetch(
    *replies: tuple[int, bytes], credential: Credential | None = None, scopes: Sequence[str] = ("repository:a:pull",)
) -> Token:
    return TokenClient("reg.example.com", Service(*replies)).fetch(SERVICE, "reg", scopes, credential, WORK)


def token_response(**fields: Any) -> tuple[int, bytes]:
    return 200, json.dumps(fields).encode()


# --- requests


def test_each_scope_is_a_separate_parameter() -> None:
    service = Service(token_response(token="t"))
    TokenClient("reg", service).fetch(SERVICE, "reg", ["repository:a:pull,push", "repository:b:pull"], ACME, WORK)
    params = [("service", "reg"), ("scope", "repository:a:pull,push"), ("scope", "repository:b:pull")]
    assert [("GET", params, None, ("acme", "s€cret"))] == service.calls


def test_missing_credentials_service_or_scopes_are_not_sent() -> None:
    service = Service(token_response(token="t"))
    TokenClient("reg", service).fetch(SERVICE, "", [], None, WORK)
    assert [("GET", [], None, None)] == service.calls


def test_an_identity_token_is_posted() -> None:
    service = Service(token_response(access_token="t"))
    client = TokenClient("reg", service)
    token = client.fetch(
        SERVICE, "reg", ["repository:a:pull", "repository:b:pull"], Credential(identity_token="I"), WORK
    )
    form = {
        "grant_type": "refresh_token",
        "service": "reg",
        "scope": "repository:a:pull repository:b:pull",
        "client_id": "mirror",
        "refresh_token": "I",
    }
    assert ("t", [("POST", [], form, None)]) == (token.value, service.calls)


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize(
    ("credential", "basic"),
    [
        (Credential(identity_token="I"), ("<token>", "I")),
        (Credential("acme", identity_token="I"), ("acme", "I")),
        (Credential("acme", "p", "I"), ("acme", "p")),
    ],
)
def test_a_service_without_post_gets_only_get_requests_afterwards(
    status: int, credential: Credential, basic: tuple[str, str]
) -> None:
    service = Service((status, b"no"), token_response(token="t"))
    client = TokenClient("reg", service)
    for _ in range(2):
        assert "t" == client.fetch(SERVICE, "reg", ["s"], credential, WORK).value
    assert [("POST", None), ("GET", basic), ("GET", basic)] == [(call[0], call[3]) for call in service.calls]


def test_a_refused_post_is_not_repeated_as_get() -> None:
    service = Service((401, b""))
    with pytest.raises(AuthError, match="refused identity token from x"):
        TokenClient("reg", service).fetch(SERVICE, "reg", [], Credential(identity_token="I", origin="x"), WORK)
    assert 1 == len(service.calls)


# --- responses


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not valid JSON"),
        (b"<html>CANARY</html>", "not valid JSON"),
        (b"{}", "no usable token"),
        (b"[]", "no token"),
        (b'"CANARY"', "no token"),
        (b'{"token":""}', "no usable token"),
        (b'{"token":null,"access_token":""}', "no usable token"),
        (b'{"token":1}', "no usable token"),
        (b'{"token":["CANARY"]}', "no usable token"),
        (b'{"token":{"a":"CANARY"}}', "no usable token"),
        (b'{"token":"CANARY\\n"}', "no usable token"),
        (b'{"token":"CANARY\\r\\nX-Evil: 1"}', "no usable token"),
        (b'{"token":"CANARY CANARY"}', "no usable token"),
        (b'{"token":"CANARY\\u0000"}', "no usable token"),
        ('{"token":"CANARYé€"}'.encode(), "no usable token"),
        (b'{"token":"CANARY\xff"}', "UTF-8"),
        (b'{"access_token":7,"token":"CANARY"}', "no usable token"),
        (b'{"token":"CANARY","token":"CANARY2"}', "duplicate key"),
        (b'{"token":"' + b"C" * MAX_BYTES + b'"}', "more than"),
        (b'{"token":' * 5000, "not valid JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_response_without_a_valid_token_is_an_error_that_does_not_quote_it(body: bytes, why: str) -> None:
    with pytest.raises(AuthError, match=why) as caught:
        fetch((200, body))
    assert "auth_failed" == caught.value.code
    assert "CANARY" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"token": "t"}, "t"),
        ({"access_token": "a"}, "a"),
        ({"token": "t", "access_token": "a"}, "a"),
        ({"token": "t", "access_token": ""}, "t"),
        ({"token": "t", "access_token": None}, "t"),
        ({"token": "~!x.y-z_" * 1000}, "~!x.y-z_" * 1000),
    ],
    ids=lambda value: str(value)[:40],
)
def test_access_token_takes_precedence_over_token(fields: dict[str, Any], expected: str) -> None:
    assert expected == fetch(token_response(**fields)).value


def test_two_different_tokens_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    client = TokenClient("reg", Service(token_response(token="TTTT", access_token="AAAA")))
    for _ in range(3):
        client.fetch(SERVICE, "reg", [], None, WORK)
    assert 1 == len(caplog.records)
    assert "TTTT" not in caplog.text
    assert "AAAA" not in caplog.text


@pytest.mark.parametrize(
    ("expires_in", "expected"),
    [
        (300, 300), (60, 60), (59, MIN), (1, MIN), (0, MIN), (-1, MIN), (90.5, 90.5),
        (3600, 3600), (3601, MAX), (10**9, MAX), (1e300, MAX), (10**400, MAX), (-(10**400), MIN),
        ("300", 300), ("999999999", MAX), ("5 min", MIN), ("", MIN), ("-300", MIN),
        ("٣٠٠", MIN),
        (None, MIN), (True, MIN), ([300], MIN), ({"seconds": 300}, MIN),
    ],
    ids=lambda value: str(value)[:12],
)  # fmt: skip
def test_the_lifetime_is_limited(expires_in: object, expected: float) -> None:
    fields = {"token": "t", "expires_in": expires_in, "issued_at": "2099-01-01T00:00:00Z"}
    assert expected == fetch(token_response(**fields)).lifetime


def test_without_expires_in_a_token_is_valid_for_a_minute() -> None:
    assert MIN_LIFETIME == fetch(token_response(token="t")).lifetime


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "auth_failed", False), (401, "auth_failed", False), (403, "auth_denied", False),
        (404, "auth_failed", False), (302, "auth_failed", False), (204, "auth_failed", False),
        (429, "rate_limited", True), (500, "bad_response", True),
    ],
)  # fmt: skip
def test_other_statuses_are_errors_that_name_host_and_account(status: int, code: str, retryable: bool) -> None:
    with pytest.raises(MirrorError, match=r"reg\.example\.com") as caught:
        fetch((status, b"s\xe2\x82\xaccret: CANARY"), credential=ACME)
    error = caught.value
    assert (code, retryable, status) == (error.code, error.retryable, error.status)
    assert ("user acme, password from env HUB_TOKEN" in str(error)) == (error.code.startswith("auth"))
    assert "CANARY" not in str(error)
    assert "cret:" not in str(error)


def test_no_repr_contains_a_token() -> None:
    assert "CANARY" not in repr(fetch(token_response(token="CANARY")))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=60)
    | st.fixed_dictionaries({}, optional={"token": _json, "access_token": _json, "expires_in": _json}).map(
        lambda fields: json.dumps(fields).encode()
    )
)
def test_any_response_gives_a_valid_token_or_an_auth_error(body: bytes) -> None:
    try:
        token = fetch((200, body))
    except AuthError:
        return
    assert token.value.isascii()
    assert token.value.isprintable()
    assert " " not in token.value
    assert MIN_LIFETIME <= token.lifetime <= MAX_LIFETIME
