"""Requests through proxies of all kinds."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.errors import (
    AuthError,
    Cancelled,
    ConfigError,
    LocalError,
    MirrorError,
    NetworkError,
    Refused,
    RemoteError,
    Unreachable,
)
from mirror.registry.http.host_settings import HostSettings, TlsSettings
from mirror.registry.http.proxy import Proxies
from mirror.registry.http.url import Origin
from mirror.registry.session import Session
from tests.registry.http.dialling import OK, at, closed_port, get, https_session, server_context
from tests.registry.http.peers import Peer, PeerConnection, raw_response, reply
from tests.registry.http.sessions import LONG_TIMEOUTS, read_all, send_and_hang, session_with, stopped_when
from tests.registry.http.test_request_body import BLOB, CREATED, NEVER, endless, pieces, put


class ForwardProxy:
    """The script of an HTTP proxy: connects to `ports` by name, and responds to other requests itself."""

    def __init__(self, ports: dict[str, int], status: str = "200 Connection established") -> None:
        self.ports = ports
        self.status = status
        self.asked: list[list[str]] = []

    def __call__(self, conn: PeerConnection) -> None:
        while (head := conn.read_head()) is not None:
            lines = head.decode().split("\r\n")
            self.asked.append(lines)
            if not lines[0].startswith("CONNECT "):
                conn.send(OK)
                continue
            conn.send(f"HTTP/1.1 {self.status}\r\n\r\n".encode())
            if self.status == "200 Connection established":
                self.relay(conn.sock, self.ports[lines[0].split(" ")[1]])
            return

    @staticmethod
    def relay(client: socket.socket, port: int) -> None:
        """Relay bytes in both directions until one side closes the connection."""
        with socket.create_connection(("127.0.0.1", port)) as origin, contextlib.suppress(OSError):
            while True:
                held = isinstance(client, ssl.SSLSocket) and client.pending() > 0
                ready = [client] if held else select.select([client, origin], [], [])[0]
                for sock in ready:
                    data = sock.recv(65536)
                    if not data:
                        return
                    (origin if sock is client else client).sendall(data)


class SocksProxy:
    """The script of a SOCKS5 proxy (RFC 1928, 1929) that knows `ports` by name. login: the required one."""

    def __init__(self, ports: dict[str, int], *, login: tuple[bytes, bytes] | None = None, reply: int = 0) -> None:
        self.ports = ports
        self.asked: list[str] = []
        self._login = login
        self._reply = reply

    def __call__(self, conn: PeerConnection) -> None:
        sock = conn.sock
        version, count = self._receive_exactly(sock, 2)
        methods = self._receive_exactly(sock, count)
        sock.sendall(bytes([version, 2 if self._login else 0]))
        if self._login:
            assert 2 in methods
            user = self._receive_exactly(sock, self._receive_exactly(sock, 2)[1])
            password = self._receive_exactly(sock, self._receive_exactly(sock, 1)[0])
            sock.sendall(bytes([1, (user, password) != self._login]))
            if (user, password) != self._login:
                return
        kind = self._receive_exactly(sock, 4)[3]
        assert kind == 3, "a name, for the proxy to resolve"
        name = self._receive_exactly(sock, self._receive_exactly(sock, 1)[0]).decode()
        self.asked.append(f"{name}:{int.from_bytes(self._receive_exactly(sock, 2))}")
        sock.sendall(bytes([5, self._reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        if not self._reply:
            ForwardProxy.relay(sock, self.ports[self.asked[-1]])

    @staticmethod
    def _receive_exactly(sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += sock.recv(count - len(data)) or b"\0" * count
        return data


def refuses(host: str, port: int) -> list[tuple[Any, ...]]:
    """A resolver that fails: names of registries must be resolved by the proxy."""
    assert host == "127.0.0.1"
    return list(at(("127.0.0.1", port))(host, port))


def test_https_uses_a_tunnel_and_the_login_is_sent_only_to_the_proxy(certificates: trustme.CA, ca: Path) -> None:
    with Peer(reply(OK), tls=server_context(certificates, "reg.example.com")) as origin:
        script = ForwardProxy({"reg.example.com:443": origin.port})
        with Peer(script) as proxy:
            options = {"proxy": f"http://me:pa%20ss@{proxy.name}", "tls": TlsSettings(ca=ca), "resolve": refuses}
            with https_session("reg.example.com", **options) as session:
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


def test_an_http_request_is_sent_to_the_proxy_with_an_absolute_url() -> None:
    script = ForwardProxy({})
    with (
        Peer(script) as proxy,
        session_with("reg.example.com:5000", proxy=f"http://me:x@{proxy.name}", resolve=refuses) as session,
    ):
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
def test_an_error_of_the_proxy_is_reported(status: str, kind: type, code: str, retryable: bool) -> None:
    with Peer(ForwardProxy({"reg.example.com:443": 1}, status)) as proxy:
        with https_session("reg.example.com", proxy=f"http://{proxy.name}") as session, pytest.raises(kind) as caught:
            get(session)
        error = caught.value
        assert isinstance(error, MirrorError)
        assert (code, retryable) == (error.code, error.retryable)
        assert "proxy" in str(error) or "malformed" in str(error)


def test_a_proxy_that_hangs_or_is_unreachable_is_reported() -> None:
    with (
        Peer(lambda conn: conn.read_to_end()) as proxy,
        https_session("reg.example.com", proxy=f"http://{proxy.name}", connect_timeout=0.2) as session,
        pytest.raises(NetworkError) as caught,
    ):
        get(session)
    assert "timeout" == caught.value.code
    options = {"proxy": f"http://127.0.0.1:{closed_port()}"}
    with https_session("reg.example.com", **options) as session, pytest.raises(Unreachable) as missing:
        get(session)
    assert 'registries."reg.example.com".proxy' in missing.value.hint


def test_behind_a_proxy_only_addresses_in_urls_are_checked() -> None:
    sent_bytes = [
        raw_response("307 T", b"", f"Location: http://{host}/x") for host in ("169.254.169.254", "cdn.internal")
    ]
    with Peer(reply(*sent_bytes, OK)) as proxy:
        with session_with("reg.example.com", proxy=f"http://{proxy.name}", resolve=refuses) as session:
            with pytest.raises(Refused):
                get(session)
            assert b"yes" == get(session).body
        assert "GET http://cdn.internal/x" == proxy.targets()[2]


@dataclass
class ProxiedRegistry:
    """The registry reg.example.com, behind a proxy."""

    proxy: Peer
    session: Session


@contextlib.contextmanager
def proxied_registry(
    kind: str, origin: Peer, certificates: trustme.CA, ca: Path, **options: Any
) -> Iterator[ProxiedRegistry]:
    """Yield a registry behind a proxy. kind: the scheme of the proxy's URL."""
    ports = {"reg.example.com:443": origin.port}
    script = SocksProxy(ports, login=(b"me", b"pa ss")) if kind == "socks5h" else ForwardProxy(ports)
    with Peer(script, tls=server_context(certificates) if kind == "https" else None) as proxy:
        options = {
            "proxy": f"{kind}://me:pa%20ss@{proxy.name}",
            "tls": TlsSettings(ca=ca),
            "resolve": refuses,
            **options,
        }
        with https_session("reg.example.com", **options) as session:
            yield ProxiedRegistry(proxy, session)


KINDS = ("http", "https", "socks5h")


@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_is_used_through_each_kind_of_proxy(kind: str, certificates: trustme.CA, ca: Path) -> None:
    sent_bytes = reply(CREATED, raw_response("200 OK", BLOB), OK)
    with (
        Peer(sent_bytes, tls=server_context(certificates, "reg.example.com")) as origin,
        proxied_registry(kind, origin, certificates, ca) as through,
    ):
        assert 201 == put(through.session, pieces()).status
        assert BLOB == read_all(through.session)
        assert b"yes" == get(through.session).body
        assert BLOB == origin.requests[0].body
        assert (1, 1) == (through.proxy.connections, origin.connections), "the connection is kept"
        assert not any("proxy-authorization" in request.headers for request in origin.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_an_early_error_response_is_read_through_a_proxy(kind: str, certificates: trustme.CA, ca: Path) -> None:
    def refuse(conn: PeerConnection) -> None:
        conn.read_head()
        conn.respond("403 No")
        conn.read_to_end()

    with (
        Peer(refuse, tls=server_context(certificates, "reg.example.com")) as origin,
        proxied_registry(kind, origin, certificates, ca) as through,
        pytest.raises(AuthError) as caught,
    ):
        put(through.session, endless(), length=NEVER)
    assert 403 == caught.value.status


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"])
def test_a_stop_interrupts_a_read_through_a_proxy(kind: str, first: bytes, certificates: trustme.CA, ca: Path) -> None:
    with (
        Peer(send_and_hang(first), tls=server_context(certificates, "reg.example.com")) as origin,
        proxied_registry(kind, origin, certificates, ca, **LONG_TIMEOUTS) as through,
        stopped_when(origin, lambda: bool(origin.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        read_all(through.session, work=doomed)


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_without_close_notify_is_truncated_through_a_proxy(
    kind: str, certificates: trustme.CA, ca: Path
) -> None:
    def cut(conn: PeerConnection) -> None:
        conn.read_request()
        conn.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")  # complete if the connection ended here
        conn.sock.close()

    with (
        Peer(cut, tls=server_context(certificates, "reg.example.com")) as origin,
        proxied_registry(kind, origin, certificates, ca) as through,
        pytest.raises(NetworkError) as caught,
    ):
        read_all(through.session)
    assert "truncated" == caught.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_behind_a_proxy_is_verified(kind: str, certificates: trustme.CA, ca: Path) -> None:
    with (
        Peer(reply(OK), tls=server_context(certificates, "other.example.com")) as origin,
        proxied_registry(kind, origin, certificates, ca) as through,
        pytest.raises(Refused) as caught,
    ):
        get(through.session)
    assert "tls_error" == caught.value.code


def test_the_certificate_of_a_proxy_is_verified(certificates: trustme.CA, ca: Path) -> None:
    with Peer(ForwardProxy({}), tls=server_context(certificates, "other.example.com")) as proxy:
        options = {"proxy": f"https://{proxy.name}", "tls": TlsSettings(ca=ca)}
        with https_session("reg.example.com", **options) as session, pytest.raises(Refused) as caught:
            get(session)
    assert "tls_error" == caught.value.code
    assert "proxy" in str(caught.value)


def test_the_proxy_is_not_contacted_if_a_tls_file_is_missing() -> None:
    with Peer(reply(OK)) as proxy:
        options: dict[str, Any] = {"proxy": f"https://{proxy.name}", "tls": TlsSettings(ca=Path("/nowhere/ca.pem"))}
        with session_with("reg.example.com", **options) as session, pytest.raises(LocalError):
            get(session)
        assert 0 == proxy.connections


def test_http_uses_absolute_urls_with_an_https_proxy_and_paths_with_socks(certificates: trustme.CA, ca: Path) -> None:
    with Peer(reply(OK), tls=server_context(certificates)) as proxy:
        options: dict[str, Any] = {"proxy": f"https://me:x@{proxy.name}", "tls": TlsSettings(ca=ca), "resolve": refuses}
        with session_with("reg.example.com:5000", **options) as session:
            assert b"yes" == get(session).body
        assert ["GET http://reg.example.com:5000/v2/"] == proxy.targets()
        assert "Basic bWU6eA==" == proxy.requests[0].headers["proxy-authorization"]
    with Peer(reply(OK)) as origin:
        script = SocksProxy({"reg.example.com:5000": origin.port})
        with Peer(script) as proxy:
            options = {"proxy": f"socks5h://{proxy.name}", "resolve": refuses}
            with session_with("reg.example.com:5000", **options) as session:
                assert b"yes" == get(session).body
        assert ["reg.example.com:5000"] == script.asked
        assert ["GET /v2/"] == origin.targets()
        assert "proxy-authorization" not in origin.requests[0].headers


@pytest.mark.parametrize(
    ("script", "seconds", "kind", "code"),
    [
        (SocksProxy({}, login=(b"me", b"other")), 60.0, AuthError, "auth_failed"),
        (SocksProxy({}, reply=5), 60.0, Unreachable, "net_error"),
        (lambda conn: conn.read_to_end(), 0.5, Unreachable, "timeout"),
        (lambda conn: conn.send(b"HTTP/1.1 400 Bad\r\n\r\n"), 60.0, Unreachable, "net_error"),
    ],
    ids=["wrong login", "refused", "hangs", "no socks"],
)
def test_an_error_of_a_socks_proxy_is_reported(script: Any, seconds: float, kind: type[MirrorError], code: str) -> None:
    with (
        Peer(script) as proxy,
        https_session("reg.example.com", proxy=f"socks5h://me:x@{proxy.name}", connect_timeout=seconds) as session,
        pytest.raises(kind) as caught,
    ):
        get(session)
    assert code == caught.value.code
    assert "proxy" in str(caught.value)


@pytest.mark.parametrize(
    ("host", "direct"),
    [
        ("reg.example.com", True),
        ("reg.example.com:5000", True),
        ("cdn.reg.example.com", True),
        ("myreg.example.com", False),
        ("example.com", False),
        ("other.example.com:5000", True),
        ("other.example.com:5001", False),
        ("127.0.0.1:5000", True),
        ("[::1]:5000", True),
        ("127.0.0.2", False),
    ],
)
def test_hosts_in_no_proxy_and_their_subdomains_are_contacted_directly(host: str, direct: bool) -> None:
    hosts = frozenset({"reg.example.com", "other.example.com:5000", "127.0.0.1", "[::1]:5000"})
    proxies = Proxies(HostSettings("x", proxy="http://p:1", no_proxy=hosts))
    assert direct == (proxies.proxy_for(Origin.parse(f"http://{host}")) is None)


def test_a_host_that_is_contacted_without_the_proxy_must_not_have_a_private_address() -> None:
    """Behind a proxy, the address is not known."""
    sent_bytes = [raw_response("307 T", b"", "Location: http://cdn.example.com/x"), OK]
    with Peer(reply(*sent_bytes)) as proxy:
        options: dict[str, Any] = {"proxy": f"http://{proxy.name}", "resolve": at(("127.0.0.1", proxy.port))}
        with session_with("reg.example.com", **options) as session:
            assert b"yes" == get(session).body
        with (
            session_with("reg.example.com", **options, no_proxy=frozenset({"cdn.example.com"})) as session,
            pytest.raises(Refused) as caught,
        ):
            proxy.requests.clear()
            get(session)
    assert "unsafe_redirect" == caught.value.code
    assert 1 == len(proxy.requests)


@pytest.mark.parametrize("proxy", ["ftp://p:1", "socks5://p", "http://", "http://p:99999", "p:3128"])
def test_a_proxy_of_another_kind_is_an_error(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        session_with("reg.example.com", proxy=proxy)
    assert 'registries."reg.example.com".proxy' in caught.value.hint
