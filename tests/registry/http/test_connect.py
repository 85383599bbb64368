"""Opening connections: who is at the other end, over what, and what is not asked on the way."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trustme

from mirror.errors import (
    AuthError,
    Cancelled,
    ConfigError,
    MirrorError,
    NetworkError,
    Refused,
    RemoteError,
    Unreachable,
)
from mirror.limits import Stop, Work
from mirror.registry.session import Answer, Session
from mirror.registry.settings import Tls
from tests.registry.http.peers import Peer, Talk, answers, peers, whole
from tests.registry.http.sessions import session_with, work

OK = whole("200 OK", b"yes")


def get(session: Session, where: str = "/v2/", **options: Any) -> Answer:
    return session.call("GET", where, options.pop("work", work(retries=False)), kind="ping", expect={200}, **options)


def at(*addresses: tuple[str, int]) -> Any:
    """A resolver that knows one answer."""

    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    return resolve


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# ---- names and TCP


def test_a_host_that_refuses_is_unreachable() -> None:
    with session_with(f"127.0.0.1:{closed_port()}") as session, pytest.raises(Unreachable) as caught:
        get(session)
    assert ("net_error", True) == (caught.value.code, caught.value.retryable)
    assert "refused" in str(caught.value)


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_that_does_not_exist_is_unreachable(error: Exception) -> None:
    def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        raise error

    with session_with("reg.example.com", resolve=resolve) as session, pytest.raises(Unreachable) as caught:
        get(session)
    assert "reg.example.com" in str(caught.value)
    assert "DNS" in caught.value.hint


def test_a_name_without_addresses_is_unreachable() -> None:
    with session_with("reg.example.com", resolve=at()) as session, pytest.raises(Unreachable):
        get(session)


def test_the_addresses_of_a_name_are_tried_in_turn() -> None:
    with Peer(answers(OK)) as peer:
        dead = closed_port()
        resolve = at(("127.0.0.1", dead), ("127.0.0.1", peer.port))
        with session_with(f"reg.example.com:{peer.port}", resolve=resolve) as session:
            assert b"yes" == get(session).body
        assert f"reg.example.com:{peer.port}" == peer.requests[0].headers["host"]
        many = at(*[("127.0.0.1", dead)] * 4, ("127.0.0.1", peer.port))
        with session_with("reg.example.com", resolve=many) as session, pytest.raises(Unreachable):
            get(session)


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that answers no SYN: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_a_connect_that_is_not_answered_ends() -> None:
    with black_hole() as port, session_with(f"127.0.0.1:{port}", connect_timeout=0.2) as session:
        begun = monotonic()
        with pytest.raises(Unreachable) as caught:
            get(session)
        assert "timeout" == caught.value.code
        assert monotonic() - begun < 2


@contextlib.contextmanager
def stopped_after(seconds: float) -> Iterator[Work]:
    stop = Stop()
    timer = threading.Timer(seconds, stop.request, ("a signal",))
    timer.start()
    begun = monotonic()
    yield Work(stop)
    assert monotonic() - begun < seconds + 1
    timer.join()


def test_a_stop_reaches_a_blocked_connect() -> None:
    with black_hole() as port, session_with(f"127.0.0.1:{port}") as session:
        with stopped_after(0.1) as doomed, pytest.raises(Cancelled):
            get(session, work=doomed)


def test_a_stop_reaches_a_blocked_handshake() -> None:
    with Peer(lambda talk: talk.until_gone()) as peer, session_with(peer, plain_http=False) as session:
        with stopped_after(0.1) as doomed, pytest.raises(Cancelled):
            get(session, work=doomed)


def test_the_socket_sends_at_once_and_watches_for_dead_peers() -> None:
    with Peer(answers(OK)) as peer, session_with(peer) as session:
        connection = session._exchange._pool.take(session.trust.own("/"), Stop())
        options = [
            connection._sock.getsockopt(*option)
            for option in ((socket.IPPROTO_TCP, socket.TCP_NODELAY), (socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        ]
        connection.close()
        connection.abort()
        assert [1, 1] == [min(1, option) for option in options]


# ---- who is at the other end


def redirecting(place: str) -> Any:
    return answers(whole("307 T", b"", f"Location: {place}"))


@pytest.mark.parametrize("address", ["169.254.169.254", "224.0.0.1", "0.0.0.0"])  # noqa: S104 - none is bound
def test_a_name_that_leads_to_a_forbidden_address_is_refused_before_a_connection(address: str) -> None:
    with Peer(redirecting("http://metadata.example:9/latest")) as peer:

        def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
            return list(at((peer.address if host == peer.address else address, port))(host, port))

        with session_with(peer, resolve=resolve) as session, pytest.raises(Refused) as caught:
            get(session)
        assert ("unsafe_redirect", False) == (caught.value.code, caught.value.retryable)


def as_if_public(session: Session) -> None:
    """From here on the registry counts as met at a public address."""
    session.trust.check_peer(session.trust.own("/"), "1.1.1.1")


def test_a_public_registry_does_not_lead_to_this_machine() -> None:
    with peers(answers(OK, whole("307 T", b"", "Location: http://cdn.example:9/x")), answers(OK)) as both:
        inside = at(("127.0.0.1", both[1].port))
        own = at(("127.0.0.1", both[0].port))
        with session_with(
            "reg.example.com", resolve=lambda host, port: (inside if host == "cdn.example" else own)(host, port)
        ) as session:
            get(session)
            as_if_public(session)
            with pytest.raises(Refused) as caught:
                get(session)
            assert ("unsafe_redirect", 0, 0) == (caught.value.code, both[1].connections, len(both[1].requests))


def test_a_kept_connection_is_looked_at_again() -> None:
    place = "http://cdn.example:9/x"
    with peers(redirecting(place), answers(OK)) as both:
        addresses = {"cdn.example": both[1].port, "reg.example.com": both[0].port}
        resolve = lambda host, port: at(("127.0.0.1", addresses[host]))(host, port)  # noqa: E731
        with session_with("reg.example.com", resolve=resolve) as session:
            for _ in range(2):
                get(session)
            assert [1, 1] == [peer.connections for peer in both]
            as_if_public(session)
            with pytest.raises(Refused):
                get(session)
            assert 2 == len(both[1].requests)


# ---- TLS


@pytest.fixture
def certificates() -> trustme.CA:
    return trustme.CA()


def server(certificates: trustme.CA, *names: str, **options: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates.issue_cert(*(names or ("127.0.0.1",)), **options).configure_cert(context)
    return context


@pytest.fixture
def ca(certificates: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "own-ca.pem"
    certificates.cert_pem.write_to_path(str(path))
    return path


def secure(peer: Peer | str, **options: Any) -> Session:
    return session_with(peer, plain_http=False, **options)


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
        with Peer(script, tls=wants_client(certificates)) as peer:
            with secure(peer, tls=Tls(ca=ca, cert=client[0], key=client[1])) as session:
                for _ in range(2):
                    get(session)
    assert [None] == [certificate or None for certificate in shown]


@pytest.mark.parametrize("tls", [Tls(ca=Path("/nowhere/ca.pem")), Tls(verify=False, cert=Path("/nowhere/c.pem"))])
def test_a_missing_file_is_named(tls: Tls) -> None:
    with Peer(answers(OK)) as peer, secure(peer, tls=tls) as session, pytest.raises(ConfigError) as caught:
        get(session)
    assert "/nowhere/" in str(caught.value)


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for tls in (Tls(ca=junk), Tls(verify=False, cert=junk)):
        with Peer(answers(OK)) as peer, secure(peer, tls=tls) as session, pytest.raises(ConfigError) as caught:
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
    with Peer(answers(OK), tls=server(certificates)) as peer, session_with(peer) as session:
        with pytest.raises(RemoteError):
            get(session)


# ---- proxies


class Proxy:
    """A forward proxy's script: CONNECT to `ports` by name, other requests answered by itself."""

    def __init__(self, ports: dict[str, int], status: str = "200 Connection established") -> None:
        self.ports = ports
        self.status = status
        self.asked: list[list[str]] = []

    def __call__(self, talk: Talk) -> None:
        while (head := talk.head()) is not None:
            lines = head.decode().split("\r\n")
            self.asked.append(lines)
            if not lines[0].startswith("CONNECT "):
                talk.say(OK)
                continue
            talk.say(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
            if self.status == "200 Connection established":
                self.relay(talk.sock, self.ports[lines[0].split(" ")[1]])
            return

    @staticmethod
    def relay(client: socket.socket, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as origin:
            back = threading.Thread(target=_pump, args=(origin, client))
            back.start()
            _pump(client, origin)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def refuses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Only the proxy is looked up here."""
    assert host == "127.0.0.1"
    return list(at(("127.0.0.1", port))(host, port))


def test_https_goes_through_a_tunnel_and_the_proxys_login_goes_no_further(certificates: trustme.CA, ca: Path) -> None:
    with Peer(answers(OK), tls=server(certificates, "reg.example.com")) as origin:
        script = Proxy({"reg.example.com:443": origin.port})
        with Peer(script) as proxy:
            options = {"proxy": f"http://me:pa%20ss@{proxy.name}", "tls": Tls(ca=ca), "resolve": refuses}
            with secure("reg.example.com", **options) as session:
                for _ in range(2):
                    assert b"yes" == get(session).body
        assert [
            [
                "CONNECT reg.example.com:443 HTTP/1.1",
                "Host: reg.example.com:443",
                "Proxy-Authorization: Basic bWU6cGEgc3M=",
            ]
        ] == script.asked
        assert not any("proxy-authorization" in request.headers for request in origin.requests)


def test_http_goes_to_the_proxy_whole() -> None:
    script = Proxy({})
    with Peer(script) as proxy:
        with session_with("reg.example.com:5000", proxy=f"http://me:x@{proxy.name}", resolve=refuses) as session:
            assert b"yes" == get(session, "/v2/?n=1").body
    assert "GET http://reg.example.com:5000/v2/?n=1 HTTP/1.1" == script.asked[0][0]
    assert {"Host: reg.example.com:5000", "Proxy-Authorization: Basic bWU6eA=="} <= set(script.asked[0])


@pytest.mark.parametrize(
    ("status", "kind", "code", "retryable"),
    [
        ("407 Login", AuthError, "auth_failed", False),
        ("403 No", RemoteError, "bad_response", False),
        ("502 Bad Gateway", RemoteError, "bad_response", True),
        ("200 OK\r\nX", RemoteError, "bad_response", False),
    ],
)
def test_a_proxy_that_does_not_connect_says_why(status: str, kind: type, code: str, retryable: bool) -> None:
    with Peer(Proxy({"reg.example.com:443": 1}, status)) as proxy:
        with secure("reg.example.com", proxy=f"http://{proxy.name}") as session, pytest.raises(kind) as caught:
            get(session)
        error = caught.value
        assert isinstance(error, MirrorError)
        assert (code, retryable) == (error.code, error.retryable)
        assert "proxy" in str(error) or "malformed" in str(error)


def test_a_proxy_that_hangs_or_is_not_there_is_told_as_that() -> None:
    with Peer(lambda talk: talk.until_gone()) as proxy:
        with secure("reg.example.com", proxy=f"http://{proxy.name}", connect_timeout=0.2) as session:
            with pytest.raises(NetworkError) as caught:
                get(session)
        assert "timeout" == caught.value.code
    options = {"proxy": f"http://127.0.0.1:{closed_port()}"}
    with secure("reg.example.com", **options) as session, pytest.raises(Unreachable) as missing:
        get(session)
    assert "registries.reg.example.com.proxy" in missing.value.hint


def test_behind_a_proxy_only_literal_addresses_can_be_judged() -> None:
    said = [whole("307 T", b"", f"Location: http://{host}/x") for host in ("169.254.169.254", "cdn.internal")]
    with Peer(answers(*said, OK)) as proxy:
        with session_with("reg.example.com", proxy=f"http://{proxy.name}", resolve=refuses) as session:
            with pytest.raises(Refused):
                get(session)
            assert b"yes" == get(session).body
        assert "GET http://cdn.internal/x" == proxy.targets()[2]


@pytest.mark.parametrize("proxy", ["https://p:1", "socks5://p", "http://", "http://p:99999", "p:3128"])
def test_a_proxy_of_another_kind_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        session_with("reg.example.com", proxy=proxy)
    assert "registries.reg.example.com.proxy" in caught.value.hint
