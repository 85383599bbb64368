"""A socket is closed if TLS cannot begin on it."""

from __future__ import annotations

import select
import socket
import ssl
import struct
from collections.abc import Callable

import pytest

from mirror.errors import NetworkError, Unreachable
from mirror.registry.http.host_settings import TlsSettings
from mirror.registry.http.tls import TlsClient
from mirror.serve.tls import wrap_connection
from mirror.util.tls_socket import TlsSocket
from tests.support import leftovers


def connected() -> tuple[socket.socket, socket.socket]:
    """Return both ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname(), 30.0)
        return near, server.accept()[0]


def reset_by_peer() -> socket.socket:
    """Return a socket that has received an RST."""
    near, far = connected()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    poll = select.poll()
    poll.register(near, 0)  # POLLERR and POLLHUP are always reported
    assert poll.poll(30_000)
    return near


def shake_hands(sock: socket.socket) -> None:
    tls_client = TlsClient(TlsSettings(verify=False), "reg.example.com")
    tls_client.connect(sock, tls_client.context(for_registry=True), "127.0.0.1", subject="reg.example.com", peer=None)


def wrap_as_server(sock: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = TlsSocket
    wrap_connection(sock, context)


@pytest.mark.parametrize("wrap", [shake_hands, wrap_as_server])
@pytest.mark.parametrize("error_read", [False, True])
def test_a_socket_that_was_reset_before_the_handshake_is_closed(
    wrap: Callable[[socket.socket], None], error_read: bool
) -> None:
    """error_read: the kernel reports the reset only once. Without TlsSocket, wrap_socket() returns a socket without TLS
    afterwards."""
    before = leftovers.take()
    sock = reset_by_peer()
    if error_read:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    with pytest.raises((NetworkError, ConnectionResetError)) as caught:
        wrap(sock)
    assert "reset by peer" in str(caught.value)
    # The error is still alive, and with it all objects of the failed call.
    assert [] == (leftovers.take() - before).describe()


@pytest.mark.parametrize("host", ["reg..example.com", "x" * 64 + ".example.com"])
def test_a_socket_is_closed_if_the_name_of_the_host_is_not_valid(host: str) -> None:
    before = leftovers.take()
    near, far = connected()
    with far:
        tls_client = TlsClient(TlsSettings(verify=False), host)
        with pytest.raises(Unreachable) as caught:
            tls_client.connect(near, tls_client.context(for_registry=True), host, subject=host, peer=None)
    assert "label" in str(caught.value)
    assert [] == (leftovers.take() - before).describe()
