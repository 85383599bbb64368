"""Ways through a proxy."""

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
from tests.registry.http.dialling import OK, at, closed_port, get, secure, server
from tests.registry.http.peers import Peer, Talk, reply, whole
from tests.registry.http.sessions import PATIENT, hanging, read_all, session_with, stopped_soon
from tests.registry.http.test_request_body import BLOB, CREATED, NEVER, endless, pieces, put


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
        """Pass on what either end says, until one has ended."""
        with socket.create_connection(("127.0.0.1", port)) as origin, contextlib.suppress(OSError):
            while True:
                held = isinstance(client, ssl.SSLSocket) and client.pending() > 0
                ready = [client] if held else select.select([client, origin], [], [])[0]
                for sock in ready:
                    data = sock.recv(65536)
                    if not data:
                        return
                    (origin if sock is client else client).sendall(data)


class Socks:
    """The script of a SOCKS5 proxy (RFC 1928, 1929) that knows `ports` by name. login: what it wants, if anything."""

    def __init__(self, ports: dict[str, int], *, login: tuple[bytes, bytes] | None = None, reply: int = 0) -> None:
        self.ports = ports
        self.asked: list[str] = []
        self._login = login
        self._reply = reply

    def __call__(self, talk: Talk) -> None:
        sock = talk.sock
        version, count = self._take(sock, 2)
        methods = self._take(sock, count)
        sock.sendall(bytes([version, 2 if self._login else 0]))
        if self._login:
            assert 2 in methods
            user = self._take(sock, self._take(sock, 2)[1])
            password = self._take(sock, self._take(sock, 1)[0])
            sock.sendall(bytes([1, (user, password) != self._login]))
            if (user, password) != self._login:
                return
        kind = self._take(sock, 4)[3]
        assert kind == 3, "a name, for the proxy to resolve"
        name = self._take(sock, self._take(sock, 1)[0]).decode()
        self.asked.append(f"{name}:{int.from_bytes(self._take(sock, 2))}")
        sock.sendall(bytes([5, self._reply, 0, 1, 0, 0, 0, 0, 0, 0]))
        if not self._reply:
            Proxy.relay(sock, self.ports[self.asked[-1]])

    @staticmethod
    def _take(sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += sock.recv(count - len(data)) or b"\0" * count
        return data


def refuses(host: str, port: int) -> list[tuple[Any, ...]]:
    """Only the proxy is looked up here."""
    assert host == "127.0.0.1"
    return list(at(("127.0.0.1", port))(host, port))


def test_https_goes_through_a_tunnel_and_the_proxys_login_goes_no_further(certificates: trustme.CA, ca: Path) -> None:
    with Peer(reply(OK), tls=server(certificates, "reg.example.com")) as origin:
        script = Proxy({"reg.example.com:443": origin.port})
        with Peer(script) as proxy:
            options = {"proxy": f"http://me:pa%20ss@{proxy.name}", "tls": TlsSettings(ca=ca), "resolve": refuses}
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
def test_a_proxy_that_does_not_connect_says_why(status: str, kind: type, code: str, retryable: bool) -> None:
    with Peer(Proxy({"reg.example.com:443": 1}, status)) as proxy:
        with secure("reg.example.com", proxy=f"http://{proxy.name}") as session, pytest.raises(kind) as caught:
            get(session)
        error = caught.value
        assert isinstance(error, MirrorError)
        assert (code, retryable) == (error.code, error.retryable)
        assert "proxy" in str(error) or "malformed" in str(error)


def test_a_proxy_that_hangs_or_is_not_there_is_told_as_that() -> None:
    with (
        Peer(lambda talk: talk.until_gone()) as proxy,
        secure("reg.example.com", proxy=f"http://{proxy.name}", connect_timeout=0.2) as session,
        pytest.raises(NetworkError) as caught,
    ):
        get(session)
    assert "timeout" == caught.value.code
    options = {"proxy": f"http://127.0.0.1:{closed_port()}"}
    with secure("reg.example.com", **options) as session, pytest.raises(Unreachable) as missing:
        get(session)
    assert 'registries."reg.example.com".proxy' in missing.value.hint


def test_behind_a_proxy_only_literal_addresses_can_be_judged() -> None:
    said = [whole("307 T", b"", f"Location: http://{host}/x") for host in ("169.254.169.254", "cdn.internal")]
    with Peer(reply(*said, OK)) as proxy:
        with session_with("reg.example.com", proxy=f"http://{proxy.name}", resolve=refuses) as session:
            with pytest.raises(Refused):
                get(session)
            assert b"yes" == get(session).body
        assert "GET http://cdn.internal/x" == proxy.targets()[2]


@dataclass
class Way:
    """A registry, reg.example.com, behind a proxy."""

    proxy: Peer
    session: Session


@contextlib.contextmanager
def way(kind: str, origin: Peer, certificates: trustme.CA, ca: Path, **options: Any) -> Iterator[Way]:
    """kind: the scheme of the proxy's URL."""
    ports = {"reg.example.com:443": origin.port}
    script = Socks(ports, login=(b"me", b"pa ss")) if kind == "socks5h" else Proxy(ports)
    with Peer(script, tls=server(certificates) if kind == "https" else None) as proxy:
        options = {
            "proxy": f"{kind}://me:pa%20ss@{proxy.name}",
            "tls": TlsSettings(ca=ca),
            "resolve": refuses,
            **options,
        }
        with secure("reg.example.com", **options) as session:
            yield Way(proxy, session)


KINDS = ("http", "https", "socks5h")


@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_is_used_through_a_proxy_of_any_kind(kind: str, certificates: trustme.CA, ca: Path) -> None:
    said = reply(CREATED, whole("200 OK", BLOB), OK)
    with (
        Peer(said, tls=server(certificates, "reg.example.com")) as origin,
        way(kind, origin, certificates, ca) as through,
    ):
        assert 201 == put(through.session, pieces()).status
        assert BLOB == read_all(through.session)
        assert b"yes" == get(through.session).body
        assert BLOB == origin.requests[0].body
        assert (1, 1) == (through.proxy.connections, origin.connections), "the connection is kept"
        assert not any("proxy-authorization" in request.headers for request in origin.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_that_comes_before_the_body_was_sent_is_read_through_a_proxy(
    kind: str, certificates: trustme.CA, ca: Path
) -> None:
    def refuse(talk: Talk) -> None:
        talk.head()
        talk.respond("403 No")
        talk.until_gone()

    with (
        Peer(refuse, tls=server(certificates, "reg.example.com")) as origin,
        way(kind, origin, certificates, ca) as through,
        pytest.raises(AuthError) as caught,
    ):
        put(through.session, endless(), length=NEVER)
    assert 403 == caught.value.status


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc"])
def test_a_stop_reaches_a_read_through_a_proxy(kind: str, first: bytes, certificates: trustme.CA, ca: Path) -> None:
    with (
        Peer(hanging(first), tls=server(certificates, "reg.example.com")) as origin,
        way(kind, origin, certificates, ca, **PATIENT) as through,
        stopped_soon(origin, lambda: bool(origin.requests)) as doomed,
        pytest.raises(Cancelled),
    ):
        read_all(through.session, work=doomed)


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_without_a_tls_goodbye_is_a_cut_through_a_proxy(kind: str, certificates: trustme.CA, ca: Path) -> None:
    def cut(talk: Talk) -> None:
        talk.request()
        talk.say(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")  # which an end would complete
        talk.sock.close()

    with (
        Peer(cut, tls=server(certificates, "reg.example.com")) as origin,
        way(kind, origin, certificates, ca) as through,
        pytest.raises(NetworkError) as caught,
    ):
        read_all(through.session)
    assert "truncated" == caught.value.code


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_behind_a_proxy_is_verified(kind: str, certificates: trustme.CA, ca: Path) -> None:
    with (
        Peer(reply(OK), tls=server(certificates, "other.example.com")) as origin,
        way(kind, origin, certificates, ca) as through,
        pytest.raises(Refused) as caught,
    ):
        get(through.session)
    assert "tls_error" == caught.value.code


def test_the_certificate_of_a_proxy_is_verified(certificates: trustme.CA, ca: Path) -> None:
    with Peer(Proxy({}), tls=server(certificates, "other.example.com")) as proxy:
        options = {"proxy": f"https://{proxy.name}", "tls": TlsSettings(ca=ca)}
        with secure("reg.example.com", **options) as session, pytest.raises(Refused) as caught:
            get(session)
    assert "tls_error" == caught.value.code
    assert "proxy" in str(caught.value)


def test_a_proxy_is_not_connected_to_if_a_file_for_its_tls_is_missing() -> None:
    with Peer(reply(OK)) as proxy:
        options: dict[str, Any] = {"proxy": f"https://{proxy.name}", "tls": TlsSettings(ca=Path("/nowhere/ca.pem"))}
        with session_with("reg.example.com", **options) as session, pytest.raises(LocalError):
            get(session)
        assert 0 == proxy.connections


def test_http_goes_to_a_proxy_in_tls_whole_and_through_socks_as_it_is(certificates: trustme.CA, ca: Path) -> None:
    with Peer(reply(OK), tls=server(certificates)) as proxy:
        options: dict[str, Any] = {"proxy": f"https://me:x@{proxy.name}", "tls": TlsSettings(ca=ca), "resolve": refuses}
        with session_with("reg.example.com:5000", **options) as session:
            assert b"yes" == get(session).body
        assert ["GET http://reg.example.com:5000/v2/"] == proxy.targets()
        assert "Basic bWU6eA==" == proxy.requests[0].headers["proxy-authorization"]
    with Peer(reply(OK)) as origin:
        script = Socks({"reg.example.com:5000": origin.port})
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
        (Socks({}, login=(b"me", b"other")), 60.0, AuthError, "auth_failed"),
        (Socks({}, reply=5), 60.0, Unreachable, "net_error"),
        (lambda talk: talk.until_gone(), 0.5, Unreachable, "timeout"),
        (lambda talk: talk.say(b"HTTP/1.1 400 Bad\r\n\r\n"), 60.0, Unreachable, "net_error"),
    ],
    ids=["wrong login", "refused", "hangs", "no socks"],
)
def test_a_socks_proxy_that_does_not_connect_says_why(
    script: Any, seconds: float, kind: type[MirrorError], code: str
) -> None:
    with (
        Peer(script) as proxy,
        secure("reg.example.com", proxy=f"socks5h://me:x@{proxy.name}", connect_timeout=seconds) as session,
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
def test_hosts_of_no_proxy_and_those_below_them_are_contacted_directly(host: str, direct: bool) -> None:
    hosts = frozenset({"reg.example.com", "other.example.com:5000", "127.0.0.1", "[::1]:5000"})
    proxies = Proxies(HostSettings("x", proxy="http://p:1", no_proxy=hosts))
    assert direct == (proxies.proxy_for(Origin.parse(f"http://{host}")) is None)


def test_a_host_that_is_contacted_without_the_proxy_must_not_be_at_a_private_address() -> None:
    """Behind the proxy that is the proxy's business."""
    said = [whole("307 T", b"", "Location: http://cdn.example.com/x"), OK]
    with Peer(reply(*said)) as proxy:
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
def test_a_proxy_of_another_kind_is_refused(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        session_with("reg.example.com", proxy=proxy)
    assert 'registries."reg.example.com".proxy' in caught.value.hint
