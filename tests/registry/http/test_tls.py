"""TLS: whom we believe, to whom we show a certificate, and what the environment has no say in."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.errors import (
    LocalError,
    MirrorError,
    NetworkError,
    Refused,
    RemoteError,
)
from mirror.registry.http.host_settings import Tls
from tests.registry.http.dialling import OK, at, get, secure, server
from tests.registry.http.peers import Peer, Talk, answers, whole
from tests.registry.http.sessions import session_with, work


def test_an_authority_of_ones_own_is_trusted(certificates: trustme.CA, ca: Path) -> None:
    with Peer(answers(OK), tls=server(certificates)) as peer, secure(peer, tls=Tls(ca=ca)) as session:
        for _ in range(3):
            assert b"yes" == get(session).body
        assert 1 == peer.connections


def ago(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)


UNTRUSTED: dict[str, tuple[tuple[str, ...], dict[str, Any], bool, str]] = {
    "unknown authority": (("127.0.0.1",), {}, False, ".tls.ca"),
    "another name": (("reg.example.com",), {}, True, ".tls.ca"),
    "expired": (("127.0.0.1",), {"not_before": ago(9), "not_after": ago(2)}, True, "clock"),
    "not valid yet": (("127.0.0.1",), {"not_before": ago(-2), "not_after": ago(-9)}, True, "clock"),
}


@pytest.mark.parametrize(("names", "dates", "known", "hint"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_a_certificate_that_does_not_hold_is_refused_and_explained(
    names: tuple[str, ...], dates: dict[str, Any], known: bool, hint: str, certificates: trustme.CA, ca: Path
) -> None:
    with Peer(answers(OK), tls=server(certificates, *names, **dates)) as peer:
        with secure(peer, tls=Tls(ca=ca if known else None)) as session:
            with pytest.raises(Refused) as caught:
                get(session, work=work())
            assert ("tls_error", False, peer.name) == (caught.value.code, caught.value.retryable, caught.value.host)
            assert hint in caught.value.hint
            assert [] == peer.requests
        with secure(peer, tls=Tls(verify=False)) as session:
            assert b"yes" == get(session).body
        with secure(peer, tls=Tls(ca=ca if known else None)) as session, pytest.raises(Refused):
            get(session)


def test_the_environment_adds_no_authority_and_takes_no_keys(
    certificates: trustme.CA, ca: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(ca))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with Peer(answers(OK), tls=server(certificates)) as peer:
        with secure(peer) as session, pytest.raises(Refused):
            get(session)
        with secure(peer, tls=Tls(ca=ca)) as session:
            get(session)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(("host", "told"), [("reg.example.com", "reg.example.com"), ("127.0.0.1", None)])
def test_a_handshake_names_the_host_unless_it_is_an_address_and_offers_http_1_1(
    host: str, told: str | None, certificates: trustme.CA, ca: Path
) -> None:
    names: list[object] = []
    chosen: list[str | None] = []

    def noting(talk: Talk) -> None:
        assert isinstance(talk.sock, ssl.SSLSocket)
        chosen.append(talk.sock.selected_alpn_protocol())
        while talk.request() is not None:
            talk.say(OK)

    context = server(certificates, host)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = lambda sock, name, context: names.append(name)
    with Peer(noting, tls=context) as peer:
        resolve = at(("127.0.0.1", peer.port))
        with secure(f"{host}:{peer.port}", tls=Tls(ca=ca), resolve=resolve) as session:
            assert b"yes" == get(session).body
    assert ([told], ["http/1.1"]) == (names, chosen)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
def test_a_second_connection_takes_up_the_handshake_of_the_first(
    version: ssl.TLSVersion, certificates: trustme.CA, ca: Path
) -> None:
    taken_up: list[bool | None] = []

    def once(talk: Talk) -> None:
        assert isinstance(talk.sock, ssl.SSLSocket)
        taken_up.append(talk.sock.session_reused)
        talk.request()
        talk.say(OK)

    context = server(certificates)
    context.minimum_version = context.maximum_version = version
    with Peer(once, tls=context) as peer, secure(peer, tls=Tls(ca=ca)) as session:
        for _ in range(3):
            assert b"yes" == get(session).body
    assert [False, True, True] == taken_up


def wants_client(certificates: trustme.CA, *names: str, required: bool = True) -> ssl.SSLContext:
    context = server(certificates, *names)
    certificates.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


@pytest.fixture
def client(certificates: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    leaf = certificates.issue_cert("client@example.com")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    leaf.cert_chain_pems[0].write_to_path(str(cert))
    leaf.private_key_pem.write_to_path(str(key))
    return cert, key


def test_a_client_certificate_is_shown_where_it_is_configured(
    certificates: trustme.CA, ca: Path, client: tuple[Path, Path]
) -> None:
    cert, key = client
    with Peer(answers(OK), tls=wants_client(certificates)) as peer:
        with secure(peer, tls=Tls(ca=ca, cert=cert, key=key)) as session:
            assert b"yes" == get(session).body
        with secure(peer, tls=Tls(ca=ca)) as session, pytest.raises(MirrorError) as caught:
            get(session)
        assert ("tls_error", False) == (caught.value.code, caught.value.retryable)
        assert "tls.cert" in caught.value.hint


def test_a_client_certificate_is_not_shown_to_a_host_that_a_server_named(
    certificates: trustme.CA, ca: Path, client: tuple[Path, Path]
) -> None:
    shown: list[Any] = []

    def noting(talk: Talk) -> None:
        assert isinstance(talk.sock, ssl.SSLSocket)
        while talk.request() is not None:
            shown.append(talk.sock.getpeercert())
            talk.say(OK)

    context = wants_client(certificates, "127.0.0.1", "127.0.0.3", required=False)
    with Peer(noting, address="127.0.0.3", tls=context) as other:
        script = answers(OK, whole("307 T", b"", f"Location: https://{other.name}/x"))
        tls = Tls(ca=ca, cert=client[0], key=client[1])
        with Peer(script, tls=wants_client(certificates)) as peer, secure(peer, tls=tls) as session:
            for _ in range(2):
                get(session)
    assert [None] == [certificate or None for certificate in shown]


@pytest.mark.parametrize("tls", [Tls(ca=Path("/nowhere/ca.pem")), Tls(verify=False, cert=Path("/nowhere/c.pem"))])
def test_a_missing_file_is_named(tls: Tls) -> None:
    with Peer(answers(OK)) as peer, secure(peer, tls=tls) as session, pytest.raises(LocalError) as caught:
        get(session)
    assert "/nowhere/" in str(caught.value)
    assert 0 == peer.connections


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for tls in (Tls(ca=junk), Tls(verify=False, cert=junk)):
        with Peer(answers(OK)) as peer, secure(peer, tls=tls) as session, pytest.raises(LocalError) as caught:
            get(session)
        assert "junk.pem" in str(caught.value)


def test_plain_http_behind_https_is_said_to_be_that() -> None:
    def script(talk: Talk) -> None:
        talk.sock.recv(100)
        talk.say(whole("400 Bad Request"))

    with Peer(script) as peer, secure(peer) as session, pytest.raises(RemoteError) as caught:
        get(session, work=work())
    assert ("tls_error", False) == (caught.value.code, caught.value.retryable)
    assert "plain-http" in caught.value.hint
    assert 1 == peer.connections


@pytest.mark.parametrize("end", [Talk.reset, lambda talk: talk.sock.close(), lambda talk: talk.until_gone()])
def test_a_handshake_that_breaks_or_hangs_may_work_the_next_time(end: Any) -> None:
    with Peer(end) as peer, secure(peer, connect_timeout=0.3) as session, pytest.raises(NetworkError) as caught:
        get(session)
    assert caught.value.retryable
    assert caught.value.code in ("net_error", "timeout")


def test_https_behind_plain_http_is_an_error(certificates: trustme.CA) -> None:
    tls = server(certificates)
    with Peer(answers(OK), tls=tls) as peer, session_with(peer) as session, pytest.raises(RemoteError):
        get(session)
