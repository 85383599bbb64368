"""Single requests to token services, by `requests`."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import Cancelled, NetworkError, RateLimited, Refused, RemoteError
from mirror.limits import Limits
from mirror.registry.session import TooBig
from tests.registry.http.peers import Peer, PeerConnection, Script, peers, raw_response, reply
from tests.registry.http.sessions import send_and_hang, session_with, stopped_when, work
from tests.registry.http.test_client import send_truncated
from tests.registry.http.test_waits import HANGS

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = raw_response("200 OK", b'{"token":"t"}', "Set-Cookie: session=1")


def test_a_token_is_requested_with_parameters_and_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("default login netrc password netrc\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "all_proxy", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    limits = Limits()
    with Peer(reply(TOKEN)) as peer, session_with(peer, limits=limits) as session:
        realm = session.url_policy.check_realm(f"http://{peer.name}/token?service=a%20b")
        scopes = [("scope", "repository:a/b:pull"), ("scope", "repository:c:pull")]
        for basic in (("me", "pä:ss"), None):
            response = session.send_one_off("GET", realm, params=scopes, basic=basic, work=work())
            assert (200, b'{"token":"t"}') == (response.status, response.body)
        login = base64.b64encode("me:pä:ss".encode()).decode()
        target = "/token?service=a%20b&scope=repository%3Aa%2Fb%3Apull&scope=repository%3Ac%3Apull"
        assert [f"Basic {login}", None] == [request.headers.get("authorization") for request in peer.requests]
        assert [target] * 2 == [request.target for request in peer.requests]
        assert not any("cookie" in request.headers for request in peer.requests)
        assert (1, {"GET token": 2}) == (peer.connections, limits.host(peer.name).requests())
        assert {"host", "user-agent", "accept-encoding", "accept"} == set(peer.requests[1].headers)


def test_a_form_is_posted() -> None:
    with Peer(reply(TOKEN)) as peer, session_with(peer) as session:
        form = {"grant_type": "refresh_token", "refresh_token": "a b&c=ü"}
        session.send_one_off("POST", session.url_policy.check_realm("/token"), form=form, work=work())
        request = peer.requests[0]
        assert ("POST", b"grant_type=refresh_token&refresh_token=a+b%26c%3D%C3%BC") == (request.method, request.body)
        assert "application/x-www-form-urlencoded" == request.headers["content-type"]


@pytest.mark.parametrize("status", ["200 OK", "400 Bad", "401 Who", "403 No", "404 None", "405 Not so"])
def test_responses_of_any_status_are_returned(status: str) -> None:
    with Peer(reply(raw_response(status, b"words"))) as peer, session_with(peer) as session:
        response = session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work())
        assert (int(status[:3]), b"words", 1) == (response.status, response.body, len(peer.requests))


@pytest.mark.parametrize("status", ["408 R", "429 R", "500 R", "503 R"])
def test_retryable_responses_are_retried(status: str) -> None:
    with Peer(reply(raw_response(status), TOKEN)) as peer, session_with(peer) as session:
        assert 200 == session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work()).status
        assert 2 == len(peer.requests)
        assert 2 == session.host.requests()["GET token"]


def test_nothing_is_retried_if_the_work_does_not_allow_it() -> None:
    with Peer(reply(raw_response("429 R", b"", "Retry-After: 5"))) as peer, session_with(peer) as session:
        with pytest.raises(RateLimited):
            session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work(retries=False))
        assert 1 == len(peer.requests)


def test_credentials_are_sent_only_to_a_destination_that_may_receive_them() -> None:
    with peers(reply(TOKEN), reply(TOKEN), addresses=("127.0.0.2", "127.0.0.3")) as both:
        with session_with(both[0]) as session:
            elsewhere = session.url_policy.check_redirect(
                f"http://{both[1].name}/token", session.url_policy.destination("/v2/")
            )
            options: list[dict[str, Any]] = [{"basic": ("me", "secret")}, {"form": {"password": "secret"}}]
            for option in options:
                with pytest.raises(Refused) as caught:
                    session.send_one_off("POST", elsewhere, work=work(), **option)
                assert "unsafe_realm" == caught.value.code
        assert [[], []] == [peer.requests for peer in both]


def test_a_redirect_is_followed_within_the_origin_with_the_login() -> None:
    script = reply(raw_response("307 T", b"", "Location: /login?state=1"), TOKEN)
    with Peer(script) as peer, session_with(peer) as session:
        realm = session.url_policy.check_realm("/token?service=x")
        session.send_one_off("GET", realm, params=[("scope", "s")], basic=("me", "secret"), work=work())
        assert ["GET /token?service=x&scope=s", "GET /login?state=1"] == peer.targets()
        assert 1 == len({request.headers["authorization"] for request in peer.requests})


@pytest.mark.parametrize(
    ("method", "fields", "kind", "code", "asked"),
    [
        ("GET", ("Location: http://127.0.0.9/",), Refused, "unsafe_realm", 1),
        ("GET", ("Location: https://evil.example/",), Refused, "unsafe_realm", 1),
        ("GET", ("Location: /again",), Refused, "unsafe_realm", 6),
        ("GET", (), RemoteError, "bad_response", 1),
        ("POST", ("Location: /again",), RemoteError, "bad_response", 1),
    ],
)
def test_other_redirects_are_not_followed(
    method: str, fields: tuple[str, ...], kind: type[Exception], code: str, asked: int
) -> None:
    with Peer(reply(raw_response("302 F", b"", *fields))) as peer, session_with(peer) as session:
        with pytest.raises(kind) as caught:
            session.send_one_off(method, session.url_policy.check_realm("/token"), form=None, work=work())
        assert (code, asked) == (getattr(caught.value, "code", ""), len(peer.requests))


def test_a_response_must_be_complete_and_within_the_limit() -> None:
    script = reply(raw_response("200 OK", b"x" * 70_000), raw_response("200 OK", b"abc")[:-1])
    with Peer(script) as peer:
        with session_with(peer) as session, pytest.raises(TooBig):
            session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work())
        with session_with(peer, idle_timeout=0.2) as session, pytest.raises(NetworkError):
            session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work(retries=False))


def test_a_response_of_http_1_0_may_end_with_the_connection() -> None:
    def script(conn: PeerConnection) -> None:
        if conn.read_request() is not None:
            conn.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
            conn.sock.close()

    with Peer(script) as peer, session_with(peer) as session:
        response = session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work(retries=False))
        assert (200, b"abc") == (response.status, response.body)


def test_a_token_response_that_is_truncated_is_an_error() -> None:
    script = send_truncated(TOKEN, lambda conn: conn.sock.close())
    with Peer(script) as peer, session_with(peer) as session:
        realm = session.url_policy.check_realm("/token")
        for _ in range(len(TOKEN)):
            with pytest.raises(NetworkError) as caught:
                session.send_one_off("GET", realm, work=work(retries=False))
            assert "truncated" == caught.value.code
        assert b'{"token":"t"}' == session.send_one_off("GET", realm, work=work()).body


@pytest.mark.parametrize("sent_bytes", [b"SSH-2.0\r\n\r\n", CHUNKED + b"zz\r\n", CHUNKED + b"-1\r\n"])
def test_a_malformed_response_is_retried(sent_bytes: bytes) -> None:
    with Peer(reply(sent_bytes, TOKEN)) as peer, session_with(peer, idle_timeout=1.0) as session:
        assert 200 == session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work()).status
        assert 2 == len(peer.requests)


@pytest.mark.parametrize(("script", "code"), HANGS.values(), ids=HANGS)
def test_a_slow_service_is_interrupted_at_the_deadline(script: Script, code: str) -> None:
    with Peer(script) as peer, session_with(peer, idle_timeout=0.8, deadline=1.0) as session:
        with pytest.raises(NetworkError) as caught:
            session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work(retries=False))
        assert (code, True) == (caught.value.code, caught.value.retryable)


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"])
def test_a_stop_interrupts_a_request(first: bytes) -> None:
    with (
        Peer(send_and_hang(first)) as peer,
        session_with(peer, idle_timeout=60.0) as session,
        stopped_when(peer, lambda: bool(peer.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        session.send_one_off("GET", session.url_policy.check_realm("/token"), work=doomed)


@pytest.mark.parametrize("end", [PeerConnection.reset, lambda conn: conn.sock.close()], ids=["reset", "close"])
def test_a_get_is_sent_again_if_the_service_closes_a_kept_connection(end: Script) -> None:
    def script(conn: PeerConnection) -> None:
        if conn.read_request() is not None:
            conn.send(TOKEN)
        if conn.read_request() is not None:
            end(conn)

    with Peer(script) as peer, session_with(peer) as session:
        for asked in (1, 3):
            session.send_one_off("GET", session.url_policy.check_realm("/token"), work=work(retries=False))
            assert asked == len(peer.requests)
        assert 2 == peer.connections


def test_a_forward_proxy_receives_the_absolute_url_and_its_login() -> None:
    with (
        Peer(reply(TOKEN)) as proxy,
        session_with("reg.example.com", proxy=f"http://me:x@{proxy.name}") as session,
    ):
        session.send_one_off("GET", session.url_policy.check_realm("/token"), params=[("a", "b")], work=work())
    assert ["GET http://reg.example.com/token?a=b"] == proxy.targets()
    assert "Basic bWU6eA==" == proxy.requests[0].headers["proxy-authorization"]


def test_a_token_service_on_another_host_has_its_own_limits() -> None:
    limits = Limits()
    with peers(reply(TOKEN), reply(TOKEN), addresses=("127.0.0.2", "127.0.0.3")) as both:
        realms = frozenset({both[1].name})
        with session_with(both[0], limits=limits, token_realms=realms) as session:
            realm = session.url_policy.check_realm(f"http://{both[1].name}/token")
            session.send_one_off("GET", realm, basic=("me", "secret"), work=work())
        assert ["authorization"] == [name for name in both[1].requests[0].headers if name == "authorization"]
        assert ({}, {"GET token": 1}) == (limits.host(both[0].name).requests(), limits.host(both[1].name).requests())
