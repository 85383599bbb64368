"""Listens on loopback. Every connection has its own thread, and `stop` joins them all."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

Serve = Callable[[socket.socket, int], None]  # an accepted connection and its number, from 1

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


def reset(connection: socket.socket) -> None:
    """Close a connection with RST; unsent bytes are lost."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    close(connection)


def close(connection: socket.socket) -> None:
    """Close at once. On TLS without close_notify, like a process that dies."""
    with suppress(OSError):
        socket.socket.close(connection)


def abort(connection: socket.socket) -> None:
    """Interrupt a call that is blocked on this socket, also below TLS."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class Listener:
    """Listens on a free port of `address`. After `start`, it runs `serve` for each connection on its own thread.

    The two steps are separate because a stray client can connect to a port as soon as it is open: everything that
    `serve` uses must exist by then.

    `serve` may raise OSError; afterwards the connection is closed. address: any of 127/8, to be another host. greet:
    called for each connection first, before TLS; if it returns False, the connection is closed."""

    def __init__(
        self,
        serve: Serve,
        *,
        name: str,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
        greet: Callable[[socket.socket], bool] | None = None,
    ) -> None:
        self._serve, self._name, self._tls, self._greet = serve, name, tls, greet
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._threads: set[threading.Thread] = set()
        self.accepted = 0
        self.stopping = threading.Event()
        self._socket = socket.create_server((address, port), backlog=256)
        self.port = int(self._socket.getsockname()[1])
        self.address = address
        self._thread = threading.Thread(target=self._accept, name=f"{name}-accept")

    def start(self) -> None:
        """Accept connections. It returns nothing, so that the listener is stored before it starts."""
        self._thread.start()

    @property
    def host(self) -> str:
        return f"{self.address}:{self.port}"

    @property
    def open(self) -> int:
        """Return the open connections."""
        with self._lock:
            return len(self._open)

    def abort_connections(self) -> None:
        """Abort every open connection."""
        with self._lock:
            connections = list(self._open.values())
        for connection in connections:
            abort(connection)

    def stop(self) -> None:
        """Abort every connection, and wait for every thread. May be called again."""
        self.stopping.set()
        abort(self._socket)  # interrupts accept()
        self._thread.join()
        self._socket.close()
        self.abort_connections()
        while True:
            with self._lock:
                threads = list(self._threads)
            if not threads:
                return
            for thread in threads:
                thread.join()

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                number = self.accepted
                self._open[number] = connection
                thread = threading.Thread(target=self._run, args=(connection, number), name=f"{self._name}-{number}")
                self._threads.add(thread)
            thread.start()

    def _run(self, connection: socket.socket, number: int) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._greet and not self._greet(connection):
                return
            if self._tls:
                connection = self._wrapped(connection, number, self._tls)
            if not self.stopping.is_set():
                self._serve(connection, number)
        except OSError:
            pass  # the peer closed the connection, or `stop` aborted it
        finally:
            close(connection)
            with self._lock:
                self._open.pop(number, None)
                self._threads.discard(threading.current_thread())

    def _wrapped(self, plain: socket.socket, number: int, tls: ssl.SSLContext) -> socket.socket:
        try:
            wrapped = tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        except OSError:
            close(plain)
            raise
        with self._lock:
            self._open[number] = wrapped
        try:
            wrapped.do_handshake()
        except OSError:
            close(wrapped)
            raise
        return wrapped
