"""A transport adapter for the library `requests` that sends over connections from `Connector`.

Importing `requests` takes 0.1 s, so this module is imported only when it is needed.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection

from mirror.errors import NetworkError, RemoteError
from mirror.limits import HostLimits
from mirror.registry.http.connection import Connection, Timeouts
from mirror.registry.http.connector import Connector
from mirror.registry.http.pool import MAX_IDLE
from mirror.registry.http.protocol import MAX_HEAD
from mirror.registry.http.request import Request
from mirror.util.cancellation import Work

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_IDLE_CONNECTIONS = 8  # per origin


class OneOffCall:
    """The state of one request that is sent through the library `requests`.

    Only the sending thread uses it, but any thread may call `abort`. `uses_absolute_url` is true if the request goes to
    a forward proxy. `peer_closed` becomes true when the peer closes the connection. `may_reuse` says whether an idle
    connection may be used."""

    def __init__(
        self, connector: Connector, host: HostLimits, request: Request, work: Work, timeouts: Timeouts
    ) -> None:
        self.request = request
        self.uses_absolute_url = connector.proxies.forward_proxy_for(request.destination.origin) is not None
        self.peer_closed = False
        self.may_reuse = True
        self._connector = connector
        self._host = host
        self._work = work
        self._timeouts = timeouts
        self._connection: Connection | None = None
        self._reused = False

    def open(self) -> Connection:
        """Open a new connection. Raises the errors of `Connector.open`."""
        return self._connector.open(self.request.destination, self._work.stop)

    def start_exchange(self, connection: Connection) -> None:
        """Start the exchange on a new or idle connection. Raises Refused if the peer's address is not allowed."""
        destination = self.request.destination
        if destination.named_by_server and connection.peer is not None:
            self._connector.check_address(destination, connection.peer)
        self._reused = connection.reused
        connection.start_exchange(self._work.stop, self._timeouts, self.request)
        self._connection = connection

    @property
    def kept_connection_was_closed(self) -> bool:
        """Whether an idle connection was reused and returned no bytes, probably because the peer had closed it."""
        return self._reused and self._connection is not None and not self._connection.received_any

    def count_request(self) -> None:
        """Count the request in the statistics of its host."""
        self._host.count_request(f"{self.request.method} {self.request.kind}")

    def abort(self) -> None:
        """Shut down the connection, which wakes the sending thread. May be called from any thread."""
        if self._connection is not None:
            self._connection.abort()


class _CallOfThread(threading.local):
    """Thread-local storage for the current call, which `requests` cannot pass to a connection."""

    call: OneOffCall | None = None


_thread_local = _CallOfThread()


@contextmanager
def activate(call: OneOffCall) -> Iterator[None]:
    """Make `call` the current call of this thread inside a `with` block."""
    _thread_local.call = call
    try:
        yield
    finally:
        _thread_local.call = None


def _current_call() -> OneOffCall:
    """Return the current call of this thread. Raises RuntimeError if there is none."""
    call = _thread_local.call
    if call is None:
        raise RuntimeError("a connection for `requests` was used outside an `activate` block")
    return call


class RequestsAdapter(HTTPAdapter):
    """A transport adapter for the library `requests` that sends over connections from `Connector`."""

    def __init__(self) -> None:
        super().__init__(max_retries=0)
        self._lock = threading.Lock()
        self._pools: dict[object, _RequestsPool] = {}

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the connection pool for the current call's origin.

        Connections that may use the registry's credentials, such as its client certificate, have a separate pool."""
        destination = _current_call().request.destination
        key = (destination.origin, destination.credentials)
        with self._lock:
            if key not in self._pools:
                self._pools[key] = _RequestsPool(
                    destination.origin.host, destination.origin.port, maxsize=MAX_IDLE_CONNECTIONS
                )
            return self._pools[key]

    def cert_verify(self, *_: Any) -> None:
        """Do nothing: the connector verifies certificates."""

    def request_url(self, request: requests.PreparedRequest, _: Any) -> str:
        """Return the request target: an absolute URL for a forward proxy, otherwise the path and query."""
        return str(request.url) if _current_call().uses_absolute_url else request.path_url

    def close(self) -> None:
        """Close idle connections."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.close()


class _RequestsConnection(HTTPConnection):
    """A urllib3 connection that sends and receives over a `Connection`, with or without TLS."""

    sock: _SocketAdapter | None

    def request(self, *arguments: Any, **options: Any) -> None:
        """Send a request. Opens the connection first if it is not open."""
        call = _current_call()
        sock = self.sock = self.sock or _SocketAdapter(call.open())
        call.start_exchange(sock.connection)
        super().request(*arguments, **options)
        call.count_request()

    @property
    def is_connected(self) -> bool:
        """Whether the connection can be reused. If not, urllib3 closes the connection and opens a new connection."""
        sock = self.sock
        if sock is None or not _current_call().may_reuse or monotonic() > sock.idle_since + MAX_IDLE:
            return False
        return not sock.connection.is_stale()


class _RequestsPool(HTTPConnectionPool):
    """A urllib3 connection pool that creates connections of the class `_RequestsConnection`."""

    ConnectionCls = _RequestsConnection


class _SocketAdapter:
    """A wrapper that gives a `Connection` the methods of a socket that urllib3 calls.

    It counts its users, which are the urllib3 connection and each open response. When the last user closes it, the
    `Connection` is closed too."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.idle_since = monotonic()
        self._users = 1

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self.connection.send(data)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        """Return a file object that reads one response. It counts as a user until it is closed."""
        self._users += 1
        return io.BufferedReader(_ResponseBytes(self.connection, self.close))

    def settimeout(self, seconds: float | None) -> None:
        """Do nothing: the connection has its own time limits."""

    def close(self) -> None:
        """Remove one user, and close the connection if no user is left."""
        self.idle_since = monotonic()
        self._users -= 1
        if not self._users:
            self.connection.close()


class _ResponseBytes(io.RawIOBase):
    """A stream of the raw bytes of one response. Unlike in `http.client`, truncated headers are an error."""

    def __init__(self, connection: Connection, close: Callable[[], None]) -> None:
        self._connection = connection
        self._close = close
        self._head: bytearray | None = bytearray()  # received bytes of the head; None once it is complete

    def readable(self) -> bool:
        """Return True, because the stream can be read."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Wait for bytes and read them into `buffer`. Return the number of bytes read.

        The number is 0 if the peer has closed the connection. Raises NetworkError (truncated) if the headers are
        incomplete, and RemoteError if they are too large."""
        view = memoryview(buffer).cast("B")
        count = self._connection.receive_into(view)
        if not count:
            _current_call().peer_closed = True
        if self._head is not None:
            self._head += view[:count]
            if b"\n\r\n" in self._head or b"\n\n" in self._head:
                self._head = None
            elif not count:
                raise NetworkError(
                    f"{self._connection.subject}: the connection ended inside the response headers", code="truncated"
                )
            elif len(self._head) > MAX_HEAD:
                raise RemoteError(f"{self._connection.subject}: the response headers are larger than {MAX_HEAD} bytes")
        return count

    def close(self) -> None:
        """End the exchange and release the connection."""
        if not self.closed:
            self._connection.end_exchange()
            self._close()
        super().close()
