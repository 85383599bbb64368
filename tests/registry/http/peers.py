"""Servers that control every byte: a listener on loopback, and a script that runs for each connection."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from mirror.util.tls_socket import TlsSocket

CRLF = b"\r\n"
Script = Callable[["PeerConnection"], object]


@dataclass
class ReceivedRequest:
    """A received request."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass
class PeerConnection:
    """One connection, from the side of the peer."""

    sock: socket.socket
    peer: Peer
    _rest: bytes = field(default=b"")

    def read_request(self) -> ReceivedRequest | None:
        """Read and record the next complete request; None if the client has closed the connection."""
        head = self._read_until(b"\r\n\r\n")
        if head is None:
            return None
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = (
            self._read_chunks()
            if "transfer-encoding" in headers
            else self._read_exactly(int(headers.get("content-length", 0)))
        )
        if body is None:
            return None
        received = ReceivedRequest(method, target, headers, body)
        self.peer.requests.append(received)
        return received

    def read_head(self) -> bytes | None:
        """Read the head of a request; None if the client has closed the connection."""
        return self._read_until(b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        """Send bytes. A client that has disconnected is ignored."""
        with contextlib.suppress(OSError):  # the client may have closed the connection
            self.sock.sendall(data)

    def respond(self, status: str, body: bytes = b"", *fields: str) -> None:
        """Send a response. fields: header lines."""
        self.send(raw_response(status, body, *fields))

    def reset(self) -> None:
        """Close the connection with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def read_to_end(self) -> bytes:
        """Return all bytes up to the end of the connection."""
        data, self._rest = self._rest, b""
        with contextlib.suppress(OSError):
            while got := self.sock.recv(65536):
                data += got
        return data

    def _receive(self) -> bool:
        try:
            got = self.sock.recv(65536)
        except OSError:
            return False
        self._rest += got
        return bool(got)

    def _read_until(self, mark: bytes) -> bytes | None:
        while mark not in self._rest:
            if not self._receive():
                return None
        found, self._rest = self._rest.split(mark, 1)
        return found

    def _read_exactly(self, count: int) -> bytes | None:
        while len(self._rest) < count:
            if not self._receive():
                return None
        found, self._rest = self._rest[:count], self._rest[count:]
        return found

    def _read_chunks(self) -> bytes | None:
        body = b""
        while (line := self._read_until(CRLF)) is not None:
            chunk = self._read_exactly(int(line, 16) + 2)
            if chunk is None:
                return None
            if chunk == CRLF:
                return body
            body += chunk[:-2]
        return None


def raw_response(status: str, body: bytes = b"", *fields: str) -> bytes:
    """Return the bytes of a response with a Content-Length. fields: header lines."""
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def reply(*responses: bytes) -> Script:
    """Return a script: the n-th request to the peer gets the n-th response, and all further ones the last response."""

    def script(conn: PeerConnection) -> None:
        while conn.read_request() is not None:
            conn.send(responses[min(len(conn.peer.requests), len(responses)) - 1])

    return script


class Peer:
    """A listener that runs the script on a thread for each connection. Use with `with`."""

    def __init__(
        self,
        script: Script,
        *,
        address: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self.changed = threading.Condition()
        self._script = script
        self._tls = tls
        if tls is not None:
            tls.sslsocket_class = TlsSocket  # clients may disconnect before the handshake
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server((address, 0))
        self.address = address
        self.port: int = self._listener.getsockname()[1]
        self._ended = 0
        self._accepting = threading.Thread(target=self._accept, name="peer-accept")

    @property
    def name(self) -> str:
        return f"{self.address}:{self.port}"

    def wait_for(self, what: Callable[[], bool], seconds: float = 60.0) -> bool:
        with self.changed:
            return self.changed.wait_for(what, seconds)

    def notify(self, what: Callable[[], None] = lambda: None) -> None:
        with self.changed:
            what()
            self.changed.notify_all()

    def wait_for_scripts(self) -> None:
        """Wait until the scripts of all connections so far have ended, and closed them."""
        assert self.wait_for(lambda: self._ended == self.connections)

    def targets(self) -> list[str]:
        return [f"{request.method} {request.target}" for request in self.requests]

    def __enter__(self) -> Peer:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(sock)
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(sock,), name="peer-serve")
            thread.start()
            self._threads.append(thread)

    def _serve(self, sock: socket.socket) -> None:
        try:
            self._talk(sock)
        finally:
            self.notify(self._count_end)

    def _count_end(self) -> None:
        self._ended += 1

    def _talk(self, sock: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            if self._tls is not None:
                try:
                    sock = self._tls.wrap_socket(sock, server_side=True)
                except OSError:
                    return
                self._sockets.append(sock)
                stack.callback(sock.close)
            self._script(PeerConnection(sock, self))


@contextlib.contextmanager
def peers(*scripts: Script, addresses: Sequence[str] = ()) -> Iterator[list[Peer]]:
    """Run several peers. addresses: one for each; by default 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(Peer(script, address=addresses[i] if addresses else "127.0.0.1"))
            for i, script in enumerate(scripts)
        ]
