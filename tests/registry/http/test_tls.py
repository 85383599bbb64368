"""TLS: trusted authorities, client certificates, and no influence of the environment."""

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
from tests.registry.http.dialling import OK, at, get, https_session, server_context
from tests.registry.http.peers import Peer, PeerConnection, raw_response, reply
from tests.registry.http.sessions import session_with, work


def test_a_private_authority_is_trusted(certificates: trustme.CA, ca: Path) -> None:
    with (
        Peer(reply(OK), tls=server_context(certificates)) as peer,
        https_session(peer, tls=TlsSettings(ca=ca)) as session,
    ):
        for _ in range(3):
            assert b"yes" == get(session).body
        assert 1 == peer.connections


def days_ago(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)


UNTRUSTED: dict[str, tuple[tuple[str, ...], dict[str, Any], bool, str]] = {
    "unknown authority": (("127.0.0.1",), {}, False, ".tls.ca"),
    "another name": (("reg.example.com",), {}, True, ".tls.ca"),
    "expired": (("127.0.0.1",), {"not_before": days_ago(9), "not_after": days_ago(2)}, True, "clock"),
    "not valid yet": (("127.0.0.1",), {"not_before": days_ago(-2), "not_after": days_ago(-9)}, True, "clock"),
}


@pytest.mark.parametrize(("names", "dates", "known", "hint"), UNTRUSTED.values(), ids=UNTRUSTED)
def test_an_invalid_certificate_is_refused_and_explained(
    names: tuple[str, ...], dates: dict[str, Any], known: bool, hint: str, certificates: trustme.CA, ca: Path
) -> None:
    with Peer(reply(OK), tls=server_context(certificates, *names, **dates)) as peer:
        with https_session(peer, tls=TlsSettings(ca=ca if known else None)) as session:
            with pytest.raises(Refused) as caught:
                get(session, work=work())
            assert ("tls_error", False, peer.name) == (caught.value.code, caught.value.retryable, caught.value.host)
            assert hint in caught.value.hint
            assert [] == peer.requests
        with https_session(peer, tls=TlsSettings(verify=False)) as session:
            assert b"yes" == get(session).body
        with https_session(peer, tls=TlsSettings(ca=ca if known else None)) as session, pytest.raises(Refused):
            get(session)


def test_the_environment_cannot_add_authorities_or_log_keys(
    certificates: trustme.CA, ca: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(ca))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with Peer(reply(OK), tls=server_context(certificates)) as peer:
        with https_session(peer) as session, pytest.raises(Refused):
            get(session)
        with https_session(peer, tls=TlsSettings(ca=ca)) as session:
            get(session)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize(("host", "told"), [("reg.example.com", "reg.example.com"), ("127.0.0.1", None)])
def test_a_handshake_sends_the_host_name_and_offers_http_1_1(
    host: str, told: str | None, certificates: trustme.CA, ca: Path
) -> None:
    names: list[object] = []
    chosen: list[str | None] = []

    def noting(conn: PeerConnection) -> None:
        assert isinstance(conn.sock, ssl.SSLSocket)
        chosen.append(conn.sock.selected_alpn_protocol())
        while conn.read_request() is not None:
            conn.send(OK)

    context = server_context(certificates, host)
    context.set_alpn_protocols(["h2", "http/1.1"])
    context.sni_callback = lambda sock, name, context: names.append(name)
    with Peer(noting, tls=context) as peer:
        resolve = at(("127.0.0.1", peer.port))
        with https_session(f"{host}:{peer.port}", tls=TlsSettings(ca=ca), resolve=resolve) as session:
            assert b"yes" == get(session).body
    assert ([told], ["http/1.1"]) == (names, chosen)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
def test_a_second_connection_resumes_the_tls_session_of_the_first(
    version: ssl.TLSVersion, certificates: trustme.CA, ca: Path
) -> None:
    taken_up: list[bool | None] = []

    def once(conn: PeerConnection) -> None:
        assert isinstance(conn.sock, ssl.SSLSocket)
        taken_up.append(conn.sock.session_reused)
        conn.read_request()
        conn.send(OK)

    context = server_context(certificates)
    context.minimum_version = context.maximum_version = version
    with Peer(once, tls=context) as peer, https_session(peer, tls=TlsSettings(ca=ca)) as session:
        for _ in range(3):
            assert b"yes" == get(session).body
    assert [False, True, True] == taken_up


def client_auth_context(certificates: trustme.CA, *names: str, required: bool = True) -> ssl.SSLContext:
    context = server_context(certificates, *names)
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


def test_a_client_certificate_is_presented_to_its_registry(
    certificates: trustme.CA, ca: Path, client: tuple[Path, Path]
) -> None:
    cert, key = client
    with Peer(reply(OK), tls=client_auth_context(certificates)) as peer:
        with https_session(peer, tls=TlsSettings(ca=ca, cert=cert, key=key)) as session:
            assert b"yes" == get(session).body
        with https_session(peer, tls=TlsSettings(ca=ca)) as session, pytest.raises(MirrorError) as caught:
            get(session)
        assert ("tls_error", False) == (caught.value.code, caught.value.retryable)
        assert "tls.cert" in caught.value.hint


def test_a_client_certificate_is_not_presented_to_a_host_that_a_server_named(
    certificates: trustme.CA, ca: Path, client: tuple[Path, Path]
) -> None:
    shown: list[Any] = []

    def noting(conn: PeerConnection) -> None:
        assert isinstance(conn.sock, ssl.SSLSocket)
        while conn.read_request() is not None:
            shown.append(conn.sock.getpeercert())
            conn.send(OK)

    context = client_auth_context(certificates, "127.0.0.1", "127.0.0.3", required=False)
    with Peer(noting, address="127.0.0.3", tls=context) as other:
        script = reply(OK, raw_response("307 T", b"", f"Location: https://{other.name}/x"))
        tls = TlsSettings(ca=ca, cert=client[0], key=client[1])
        with Peer(script, tls=client_auth_context(certificates)) as peer, https_session(peer, tls=tls) as session:
            for _ in range(2):
                get(session)
    assert [None] == [certificate or None for certificate in shown]


def test_a_client_certificate_is_presented_if_it_is_requested_after_the_handshake(
    certificates: trustme.CA, ca: Path, client: tuple[Path, Path]
) -> None:
    shown: list[bool] = []

    def asking(conn: PeerConnection) -> None:
        assert isinstance(conn.sock, ssl.SSLSocket)
        conn.read_request()
        conn.sock.verify_client_post_handshake()
        conn.send(OK)
        conn.read_request()
        shown.append(bool(conn.sock.getpeercert()))
        conn.send(OK)

    context = client_auth_context(certificates)
    context.post_handshake_auth = True
    with (
        Peer(asking, tls=context) as peer,
        https_session(peer, tls=TlsSettings(ca=ca, cert=client[0], key=client[1])) as session,
    ):
        for _ in range(2):
            assert b"yes" == get(session).body
    assert {True} == set(shown)


def test_an_intermediate_authority_can_be_trusted() -> None:
    """`tls.ca` may have only the authority that issued the certificate, without its root."""
    intermediate = trustme.CA().create_child_ca()
    with (
        intermediate.cert_pem.tempfile() as only,
        Peer(reply(OK), tls=server_context(intermediate)) as peer,
        https_session(peer, tls=TlsSettings(ca=Path(only))) as session,
    ):
        assert b"yes" == get(session).body


def common_name_only_server(host: str, folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Return the context of a server whose certificate has the host only in its common name, and its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), days_ago(1), days_ago(-1)
    )
    file = folder / "old.pem"
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context, file


def test_the_host_must_be_a_subject_alternative_name_of_the_certificate(tmp_path: Path) -> None:
    """The common name does not count. Source: RFC 9525, 2."""
    context, file = common_name_only_server("reg.example.com", tmp_path)
    with Peer(reply(OK), tls=context) as peer:
        resolve = at(("127.0.0.1", peer.port))
        host = f"reg.example.com:{peer.port}"
        with (
            https_session(host, tls=TlsSettings(ca=file), resolve=resolve) as session,
            pytest.raises(Refused) as caught,
        ):
            get(session)
    assert "tls_error" == caught.value.code


def test_a_connection_is_closed_with_close_notify(certificates: trustme.CA, ca: Path) -> None:
    ends: list[object] = []

    def noting(conn: PeerConnection) -> None:
        assert isinstance(conn.sock, ssl.SSLSocket)
        conn.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        conn.read_request()
        conn.send(OK)
        try:
            ends.append(conn.sock.recv(1))
        except OSError as error:
            ends.append(error)

    with Peer(noting, tls=server_context(certificates)) as peer, https_session(peer, tls=TlsSettings(ca=ca)) as session:
        get(session)
    assert [b""] == ends


def test_close_notify_does_not_wait_for_a_peer_that_reads_nothing(certificates: trustme.CA) -> None:
    near, far = socket.socketpair()
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificates.configure_trust(ours)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(server_context(certificates).wrap_socket, far, server_side=True)
        near.settimeout(30.0)
        connection = TlsConnection(ours.wrap_socket(near, server_hostname="127.0.0.1"), "it", None, {})
        with theirs.result():
            connection.start_exchange(Stop(), Timeouts(0.1, monotonic() + 0.1), "it")
            with pytest.raises(NetworkError):
                connection.send(b"x" * (16 << 20))
            started = monotonic()
            connection.close()
            assert monotonic() - started < 20.0  # seconds; less than the timeout of the socket


def test_a_message_of_many_tls_records_has_one_time_limit(certificates: trustme.CA) -> None:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    certificates.configure_trust(ours)

    def slow() -> None:
        with server_context(certificates).wrap_socket(far, server_side=True) as sock, suppress(OSError):
            while sock.recv(16 << 10):
                sleep(0.1)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(slow)
        near.settimeout(30.0)
        connection = TlsConnection(ours.wrap_socket(near, server_hostname="127.0.0.1"), "it", None, {})
        started = monotonic()
        connection.start_exchange(Stop(), Timeouts(0.3, started + 0.3), "it")
        with pytest.raises(NetworkError) as caught:
            connection.send(b"x" * (8 << 20))  # the server needs more than 50 s for all of it
        assert ("timeout", True) == (caught.value.code, monotonic() - started < 30.0)
        connection.close()


@pytest.mark.parametrize(
    "tls", [TlsSettings(ca=Path("/nowhere/ca.pem")), TlsSettings(verify=False, cert=Path("/nowhere/c.pem"))]
)
def test_a_missing_file_is_named(tls: TlsSettings) -> None:
    with Peer(reply(OK)) as peer, https_session(peer, tls=tls) as session, pytest.raises(LocalError) as caught:
        get(session)
    assert "/nowhere/" in str(caught.value)
    assert 0 == peer.connections


def test_a_file_that_is_not_a_certificate_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for tls in (TlsSettings(ca=junk), TlsSettings(verify=False, cert=junk)):
        with Peer(reply(OK)) as peer, https_session(peer, tls=tls) as session, pytest.raises(LocalError) as caught:
            get(session)
        assert "junk.pem" in str(caught.value)


def test_a_plain_http_server_at_an_https_url_gets_a_hint() -> None:
    def script(conn: PeerConnection) -> None:
        conn.sock.recv(100)
        conn.send(raw_response("400 Bad Request"))

    with Peer(script) as peer, https_session(peer) as session, pytest.raises(RemoteError) as caught:
        get(session, work=work())
    assert ("tls_error", False) == (caught.value.code, caught.value.retryable)
    assert "plain-http" in caught.value.hint
    assert 1 == peer.connections


@pytest.mark.parametrize("end", [PeerConnection.reset, lambda conn: conn.sock.close(), lambda conn: conn.read_to_end()])
def test_a_handshake_that_fails_or_hangs_is_retryable(end: Any) -> None:
    with Peer(end) as peer, https_session(peer, connect_timeout=0.3) as session, pytest.raises(NetworkError) as caught:
        get(session)
    assert caught.value.retryable
    assert caught.value.code in ("net_error", "timeout")


def test_an_https_server_at_an_http_url_is_an_error(certificates: trustme.CA) -> None:
    tls = server_context(certificates)
    with Peer(reply(OK), tls=tls) as peer, session_with(peer) as session, pytest.raises(RemoteError):
        get(session)
