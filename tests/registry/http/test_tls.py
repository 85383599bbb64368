"""TLS: whom we believe, to whom we show a certificate, and what the environment has no say in."""

from __future__ import annotations

import datetime
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mirror.errors import (
    LocalError,
    MirrorError,
    NetworkError,
    Refused,
    RemoteError,
)
from mirror.registry.http.connection import Timeouts
from mirror.registry.http.host_settings import TlsSettings
from mirror.registry.http.tls import TlsConnection
from mirror.util.cancellation import Stop
from tests.registry.http.dialling import OK, at, get, secure, server
from tests.registry.http.peers import Peer, Talk, reply, whole
from tests.registry.http.sessions import session_with, work


def test_an_authority_of_ones_own_is_trusted(certificates: trustme.CA, ca: Path) -> None:
    with Peer(reply(OK), tls=server(certificates)) as peer, secure(peer, tls=TlsSettings(ca=ca)) as session:
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
    with Peer(reply(OK), tls=server(certificates, *names, **dates)) as peer:
        with secure(peer, tls=TlsSettings(ca=ca if known else None)) as session:
            with pytest.raises(Refused) as caught:
                get(session, work=work())
            assert ("tls_error", False, peer.name) == (caught.value.code, caught.value.retryable, caught.value.host)
            assert hint in caught.value.hint
            assert [] == peer.requests
        with secure(peer, tls=TlsSettings(verify=False)) as session:
            assert b"yes" == get(session).body
        with secure(peer, tls=TlsSettings(ca=ca if known else None)) as session, pytest.raises(Refused):
            get(session)


def test_the_environment_adds_no_authority_and_takes_no_keys(
    certificates: trustme.CA, ca: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(ca))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with Peer(reply(OK), tls=server(certificates)) as peer:
        with secure(peer) as session, pytest.raises(Refused):
            get(session)
        with secure(peer, tls=TlsSettings(ca=ca)) as session:
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
        with secure(f"{host}:{peer.port}", tls=TlsSettings(ca=ca), resolve=resolve) as session:
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
    with Peer(once, tls=context) as peer, secure(peer, tls=TlsSettings(ca=ca)) as session:
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
    with Peer(reply(OK), tls=wants_client(certificates)) as peer:
        with secure(peer, tls=TlsSettings(ca=ca, cert=cert, key=key)) as session:
            assert b"yes" == get(session).body
        with secure(peer, tls=TlsSettings(ca=ca)) as session, pytest.raises(MirrorError) as caught:
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
        script = reply(OK, whole("307 T", b"", f"Location: https://{other.name}/x"))
        tls = TlsSettings(ca=ca, cert=client[0], key=client[1])
        with Peer(script, tls=wants_client(certificates)) as peer, secure(peer, tls=tls) as session:
            for _ in range(2):
                get(session)
    assert [None] == [certificate or None for certificate in shown]


def test_a_client_certificate_is_shown_when_it_is_asked_for_after_the_handshake(
    certificates: trustme.CA, ca: Path, client: tuple[Path, Path]
) -> None:
    shown: list[bool] = []

    def asking(talk: Talk) -> None:
        assert isinstance(talk.sock, ssl.SSLSocket)
        talk.request()
        talk.sock.verify_client_post_handshake()
        talk.say(OK)
        talk.request()
        shown.append(bool(talk.sock.getpeercert()))
        talk.say(OK)

    context = wants_client(certificates)
    context.post_handshake_auth = True
    with (
        Peer(asking, tls=context) as peer,
        secure(peer, tls=TlsSettings(ca=ca, cert=client[0], key=client[1])) as session,
    ):
        for _ in range(2):
            assert b"yes" == get(session).body
    assert {True} == set(shown)


def test_an_intermediate_authority_is_enough() -> None:
    """Who is given only the authority that signs the registry's certificate need not find its root."""
    intermediate = trustme.CA().create_child_ca()
    with (
        intermediate.cert_pem.tempfile() as only,
        Peer(reply(OK), tls=server(intermediate)) as peer,
        secure(peer, tls=TlsSettings(ca=Path(only))) as session,
    ):
        assert b"yes" == get(session).body


def named_in_the_old_way(host: str, folder: Path) -> tuple[ssl.SSLContext, Path]:
    """-> a server with a certificate that has its host only in the common name; that certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), ago(1), ago(-1))
    file = folder / "old.pem"
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file


def test_a_host_must_be_among_the_alternative_names_of_its_certificate(tmp_path: Path) -> None:
    """Source: RFC 9525, 2: a common name is none."""
    context, file = named_in_the_old_way("reg.example.com", tmp_path)
    with Peer(reply(OK), tls=context) as peer:
        resolve = at(("127.0.0.1", peer.port))
        host = f"reg.example.com:{peer.port}"
        with secure(host, tls=TlsSettings(ca=file), resolve=resolve) as session, pytest.raises(Refused) as caught:
            get(session)
    assert "tls_error" == caught.value.code


def test_a_connection_is_closed_with_a_goodbye(certificates: trustme.CA, ca: Path) -> None:
    ends: list[object] = []

    def noting(talk: Talk) -> None:
        assert isinstance(talk.sock, ssl.SSLSocket)
        talk.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        talk.request()
        talk.say(OK)
        try:
            ends.append(talk.sock.recv(1))
        except OSError as error:
            ends.append(error)

    with Peer(noting, tls=server(certificates)) as peer, secure(peer, tls=TlsSettings(ca=ca)) as session:
        get(session)
    assert [b""] == ends


def test_a_goodbye_does_not_wait_for_a_peer_that_takes_nothing(certificates: trustme.CA) -> None:
    near, far = socket.socketpair()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificates.configure_trust(ours)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(server(certificates).wrap_socket, far, server_side=True)
        near.settimeout(30.0)
        connection = TlsConnection(ours.wrap_socket(near, server_hostname="127.0.0.1"), "it", None, {})
        with theirs.result():
            connection.start_exchange(Stop(), Timeouts(0.1, monotonic() + 0.1), "it")
            with pytest.raises(NetworkError):
                connection.send(b"x" * (16 << 20))
            begun = monotonic()
            connection.close()
            assert monotonic() - begun < 20.0  # seconds; less than the timeout of the socket


def test_a_message_has_one_bound_however_many_records_it_is(certificates: trustme.CA) -> None:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificates.configure_trust(ours)

    def slow() -> None:
        with server(certificates).wrap_socket(far, server_side=True) as sock, suppress(OSError):
            while sock.recv(16 << 10):
                sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(slow)
        near.settimeout(30.0)
        connection = TlsConnection(ours.wrap_socket(near, server_hostname="127.0.0.1"), "it", None, {})
        begun = monotonic()
        connection.start_exchange(Stop(), Timeouts(0.3, begun + 0.3), "it")
        with pytest.raises(NetworkError) as caught:
            connection.send(b"x" * (8 << 20))  # all of it takes the server more than 50 s
        assert ("timeout", True) == (caught.value.code, monotonic() - begun < 30.0)
        connection.close()


@pytest.mark.parametrize(
    "tls", [TlsSettings(ca=Path("/nowhere/ca.pem")), TlsSettings(verify=False, cert=Path("/nowhere/c.pem"))]
)
def test_a_missing_file_is_named(tls: TlsSettings) -> None:
    with Peer(reply(OK)) as peer, secure(peer, tls=tls) as session, pytest.raises(LocalError) as caught:
        get(session)
    assert "/nowhere/" in str(caught.value)
    assert 0 == peer.connections


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for tls in (TlsSettings(ca=junk), TlsSettings(verify=False, cert=junk)):
        with Peer(reply(OK)) as peer, secure(peer, tls=tls) as session, pytest.raises(LocalError) as caught:
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
    with Peer(reply(OK), tls=tls) as peer, session_with(peer) as session, pytest.raises(RemoteError):
        get(session)
