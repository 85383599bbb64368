"""Requests that do not count as the tests' own, so they are logged and get faults: as raw bytes, or by a client."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass

from tests.registries.client import Client, Response
from tests.registries.scripted import ScriptedRegistry

_WAIT = 60.0  # seconds until a read fails


@dataclass(frozen=True, slots=True)
class Received:
    """The received bytes, how the connection ended (`FIN`, `RST`), and the duration in seconds."""

    data: bytes
    end: str
    seconds: float

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1]) if self.data else 0


def connect(host: str) -> socket.socket:
    """Open a plain connection to `host:port`."""
    address, _, port = host.rpartition(":")
    return socket.create_connection((address, int(port)), _WAIT)


def ask(host: str, method: str, path: str, *, body: bytes = b"", headers: str = "") -> Received:
    """Send a request with `Connection: close`, and read until the connection ends."""
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: raw\r\nConnection: close\r\n{headers}{length}\r\n"
    started = time.monotonic()
    try:
        with connect(host) as connection:
            received, end = _exchange(connection, head.encode() + body)
    except ConnectionResetError:
        received, end = b"", "RST"  # already while connecting
    return Received(received, end, time.monotonic() - started)


def _exchange(connection: socket.socket, request: bytes) -> tuple[bytes, str]:
    received, end = bytearray(), "FIN"
    try:
        connection.sendall(request)
    except ConnectionError:
        end = "RST"  # an earlier response can still be read
    try:
        while piece := connection.recv(1 << 16):
            received += piece
    except ConnectionResetError:
        end = "RST"
    return bytes(received), end


def stranger(registry: ScriptedRegistry) -> Client:
    """Return a client without credentials whose requests count."""
    context = registry.tls.client_context() if registry.tls else None
    return Client(registry.host, tls=context, agent="stranger")


def once(registry: ScriptedRegistry, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
    """Send one request on its own connection. headers: with `_` for `-`."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with stranger(registry) as client:
        return client.ask(method, path, body=body, headers=sent)
