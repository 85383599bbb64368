"""Requests of a session: their headers and credentials, expected statuses, logging."""

from __future__ import annotations

import contextlib
import gzip
import logging
from typing import Any
from urllib.parse import urlsplit

import pytest

from mirror.errors import (
    AuthError,
    Cancelled,
    NetworkError,
    NotFound,
    Refused,
    RemoteError,
)
from mirror.registry.session import Anonymous, TooBig
from tests.registry.http.peers import Peer, peers, raw_response, reply
from tests.registry.http.sessions import (
    LONG_TIMEOUTS,
    SCOPES,
    Keys,
    get,
    redirect_to,
    send_and_hang,
    session_with,
    stopped_when,
    work,
)


def test_a_request_has_the_required_headers_and_nothing_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text(
        "default login netrc password netrc\nmachine 127.0.0.1 login netrc password netrc\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    with Peer(reply(raw_response("200 OK", b"[]", "Set-Cookie: a=b"))) as peer, session_with(peer) as session:
        for _ in range(2):
            response = get(session, "/v2/a/b/tags/list?n=5", headers=(("Accept", "x/y"),))
        assert (200, b"[]", "/v2/a/b/tags/list?n=5") == (response.status, response.body, response.destination.target)
        assert ["GET /v2/a/b/tags/list?n=5"] * 2 == peer.targets()
        sent = peer.requests[1].headers
        assert {"host", "user-agent", "accept-encoding", "accept"} == set(sent)
        assert (peer.name, "identity", "x/y") == (sent["host"], sent["accept-encoding"], sent["accept"])
        assert sent["user-agent"].startswith("mirror/")
        assert 1 == peer.connections


def test_small_bodies_are_sent_with_their_length_and_repeated_on_a_retry() -> None:
    script = reply(raw_response("500 Oops"), raw_response("201 Created", b"", "Location: /x"))
    for body in (b"{}", b"x" * 200_000, b""):
        with Peer(script) as peer, session_with(peer) as session:
            response = get(session, "/v2/a/b/manifests/1", method="PUT", kind="manifest", body=body, expect={201})
            assert "/x" == response.headers.get("location")
            assert [(str(len(body)), body)] * 2 == [(r.headers["content-length"], r.body) for r in peer.requests]


@pytest.mark.parametrize("status", ["200 OK", "202 Accepted", "204 No Content", "299 Fine"])
def test_only_an_expected_status_is_a_success(status: str) -> None:
    with Peer(reply(raw_response(status))) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError) as caught:
            get(session, method="PUT", expect={201})
        assert ("bad_response", int(status[:3])) == (caught.value.code, caught.value.status)
        assert 1 == len(peer.requests)


def test_an_error_has_the_message_of_the_registry_and_no_query() -> None:
    body = b'{"errors":[{"code":"NAME_UNKNOWN","message":"no \\u001b[2J such"}]}'
    with Peer(reply(raw_response("404 Not Found", body))) as peer, session_with(peer) as session:
        with pytest.raises(NotFound) as caught:
            get(session, "/v2/a/b/tags/list?token=CANARY")
        error = caught.value
        assert f"GET http://{peer.name}/v2/a/b/tags/list: 404 Not Found: NAME_UNKNOWN: no \\x1b[2J such" == str(error)
        assert ("NAME_UNKNOWN", 404, peer.name) == (error.registry_code, error.status, error.host)


def test_responses_are_limited_and_decompressed() -> None:
    packed = gzip.compress(b"x" * 5000)
    script = reply(raw_response("200 OK", packed, "Content-Encoding: gzip"), raw_response("200 OK", b"x" * 101))
    with Peer(script) as peer, session_with(peer) as session:
        assert b"x" * 5000 == get(session, limit=5000).body
        with pytest.raises(TooBig):
            get(session, limit=100)


def test_an_invalid_request_is_not_sent() -> None:
    with (
        Peer(reply(raw_response("200 OK"))) as peer,
        session_with(peer, authorizer=Keys("Bearer a\r\nX: y")) as session,
    ):
        with pytest.raises(Refused) as caught:
            get(session)
        assert "Bearer" not in str(caught.value)
        assert [] == peer.requests


def test_credentials_are_sent_and_renewed_once() -> None:
    script = reply(
        raw_response("401 No", b"", 'WWW-Authenticate: Bearer realm="x"', "WWW-Authenticate: Basic"),
        raw_response("200 OK"),
    )
    keys = Keys(None, "Bearer new")
    with Peer(script) as peer, session_with(peer, authorizer=keys) as session:
        get(session, scopes=SCOPES, retries=False)
        assert [None, "Bearer new"] == [request.headers.get("authorization") for request in peer.requests]
        assert [(['Bearer realm="x"', "Basic"], None)] == keys.challenges
        assert [SCOPES] == keys.accepted_scopes
        assert {"GET tags": 2} == session.host.requests()


def test_a_second_refusal_is_final() -> None:
    keys = Keys("Bearer 1", "Bearer 2", "Bearer 3", "Bearer 4")
    with Peer(reply(raw_response("401 No", b"", "WWW-Authenticate: Bearer"))) as peer:
        with session_with(peer, authorizer=keys) as session, pytest.raises(AuthError) as caught:
            get(session, scopes=SCOPES)
        assert ("auth_failed", 401, False) == (caught.value.code, caught.value.status, caught.value.retryable)
        assert 2 == len(peer.requests)
        assert [] == keys.accepted_scopes


def test_without_credentials_a_challenge_is_final() -> None:
    with Peer(reply(raw_response("401 No", b"", "WWW-Authenticate: Bearer"))) as peer:
        with session_with(peer) as session, pytest.raises(AuthError):
            get(session)
        assert 1 == len(peer.requests)
        assert None is Anonymous().header((), work())


def test_expired_credentials_reported_by_a_403_are_renewed_once() -> None:
    expired = raw_response("403 Forbidden", b"Your authorization token has expired. Reauthenticate and try again.")
    keys = Keys("Basic old", "Basic new")
    with Peer(reply(expired, raw_response("200 OK"))) as peer, session_with(peer, authorizer=keys) as session:
        get(session, retries=False)
        assert [([], "Basic old")] == keys.challenges
    keys = Keys("Basic old", "Basic new", "Basic newer")
    with Peer(reply(expired)) as peer, session_with(peer, authorizer=keys) as session:
        with pytest.raises(AuthError) as caught:
            get(session)
        assert ("auth_denied", 2) == (caught.value.code, len(peer.requests))


def test_denied_access_is_not_retried() -> None:
    with Peer(reply(raw_response("403 Forbidden"))) as peer, session_with(peer, authorizer=Keys("Basic x")) as session:
        with pytest.raises(AuthError) as caught:
            get(session)
        assert ("auth_denied", 1) == (caught.value.code, len(peer.requests))


def test_each_header_call_is_followed_by_one_report_of_its_result() -> None:
    keys = Keys("Bearer x")
    sent_bytes = [
        raw_response("200 OK"),
        raw_response("429 Slow", b"", "Retry-After: 0"),
        raw_response("502 R"),
        raw_response("404 None"),
    ]
    with Peer(reply(*sent_bytes)) as peer, session_with(peer, authorizer=keys) as session:
        for _ in sent_bytes:
            with contextlib.suppress(RemoteError):
                get(session, retries=False)
    assert (2, 2, []) == (len(keys.accepted_scopes), keys.releases, keys.challenges)
    with session_with(peer, authorizer=keys) as session, pytest.raises(NetworkError):
        get(session, retries=False)
    assert 3 == keys.releases


@pytest.mark.parametrize("status", [b"401 Who", b"403 Forbidden"])
def test_a_stop_while_an_error_response_is_read_is_reported_to_the_authorizer(status: bytes) -> None:
    keys = Keys("Bearer x")
    sent_bytes = b"HTTP/1.1 " + status + b"\r\nContent-Length: 99\r\n\r\nYour auth"
    with (
        Peer(send_and_hang(sent_bytes)) as peer,
        session_with(peer, authorizer=keys, **LONG_TIMEOUTS) as session,
        stopped_when(peer, lambda: bool(peer.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        get(session, work=doomed)
    assert (1, [], []) == (keys.releases, keys.challenges, keys.accepted_scopes)


def test_requests_are_logged_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    found: list[Peer] = []
    place = lambda: f"http://{found[1].name}/signed?X-Signature=CANARY"  # noqa: E731
    with (
        caplog.at_level(logging.DEBUG, "mirror.http"),
        peers(redirect_to(place), reply(raw_response("500 R", b"no")), addresses=("127.0.0.2", "127.0.0.3")) as both,
    ):
        found += both
        with session_with(both[0], authorizer=Keys("Bearer CANARY")) as session, pytest.raises(RemoteError) as caught:
            get(session, "/v2/x?secret=CANARY", retries=False)
        with pytest.raises(NetworkError), session_with("127.0.0.2:1") as session:
            get(session, "/v2/x?secret=CANARY", retries=False)
        records = [vars(record) for record in caplog.records if record.msg == "request"]
    shown = [(urlsplit(one["url"]), one["status"], one["code"]) for one in records]
    assert [
        ("/v2/x", "secret=***", 307, None),
        ("/signed", "X-Signature=***", 500, None),
        ("/v2/x", "secret=***", None, "net_error"),
    ] == [(url.path, url.query, status, code) for url, status, code in shown]
    assert len({one["request_id"] for one in records}) == 3
    assert "CANARY" not in f"{caplog.text}{records}{caught.value!s}{caught.value!r}"
