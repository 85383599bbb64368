"""An HTTP proxy that opens tunnels (CONNECT) to servers on loopback, which play hosts of other names."""

from __future__ import annotations

import select
import socket
from collections.abc import Mapping
from typing import Self

from tests.registries.listener import Listener

_BLOCK = 1 << 16


class Tunnel:
    """Use with `with`. ports: `host:port` as clients name it -> port of 127.0.0.1. Other names get 502.

    asked: the names of all requests."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.ports = dict(ports)
        self.asked: list[str] = []
        self._listener = Listener(self._serve, name="tunnel")
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.stop()

    @property
    def url(self) -> str:
        return f"http://{self._listener.host}"

    def _serve(self, client: socket.socket, number: int) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = client.recv(_BLOCK)
            if not data:
                return
            head += data
        method, name = head.decode("latin-1").split(" ")[:2]
        self.asked.append(name)
        if method != "CONNECT" or name not in self.ports:
            client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        with socket.create_connection(("127.0.0.1", self.ports[name])) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(_BLOCK)
                    if not data:
                        return
                    (server if source is client else client).sendall(data)
