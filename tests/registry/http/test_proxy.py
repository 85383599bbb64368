"""Ways through a proxy."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme

from mirror.errors import (
    AuthError,
    ConfigError,
    MirrorError,
    NetworkError,
    Refused,
    RemoteError,
    Unreachable,
)
from mirror.registry.http.host_settings import Tls
from tests.registry.http.dialling import OK, at, closed_port, get, secure, server
from tests.registry.http.peers import Peer, Talk, answers, whole
from tests.registry.http.sessions import session_with


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
    assert 'registries."reg.example.com".proxy' in caught.value.hint
