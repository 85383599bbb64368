"""Connects to a host over TCP: tries its addresses until one accepts. Source: RFC 8305 ("Happy Eyeballs")."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from time import monotonic

from mirror.errors import Refused
from mirror.registry.http.lookups import AddressInfo
from mirror.util.cancellation import Stop

ATTEMPT_DELAY = 0.25  # seconds until the next address is tried while earlier attempts are pending: RFC 8305, 8
MAX_ADDRESSES = 16  # the maximum number of addresses that are tried for one host
# A registry may need minutes before it responds. Keepalive probes start before middleboxes drop the idle connection,
# which common middleboxes do after 60 s at the earliest. An unreachable peer is detected after 60 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
# Error numbers for a lack of resources on this machine. After such an error, no other address is tried.
RESOURCE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def interleave(addresses: Sequence[AddressInfo]) -> list[AddressInfo]:
    """Reorder addresses so that IPv6 and IPv4 alternate. The first address stays first. Source: RFC 8305, 4."""
    families: dict[int, list[AddressInfo]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    longest = max(map(len, families.values()), default=0)
    return [family[index] for index in range(longest) for family in families.values() if index < len(family)]


class AbortableSockets:
    """A set of sockets that `abort` shuts down together to wake the threads that are blocked on them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a socket must not be closed and its descriptor reused while `abort` runs
        self._sockets: list[socket.socket] = []

    def add(self, sock: socket.socket) -> None:
        """Add a socket, so that `abort` shuts it down."""
        with self._lock:
            self._sockets.append(sock)

    def remove(self, sock: socket.socket) -> None:
        """Remove a socket. Raises ValueError if it was not added."""
        with self._lock:
            self._sockets.remove(sock)

    def close(self) -> None:
        """Close and remove all sockets in the set."""
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()

    def abort(self) -> None:
        """Shut down all sockets in the set. May be called from any thread."""
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # the socket may be disconnected
                    sock.shutdown(socket.SHUT_RDWR)


class Dialer:
    """A dialer for one TCP connection to a host. It tries the addresses of the host until one accepts the connection.

    Each instance can be used only once. `check` is called with each address before a connection attempt, and with the
    address of the connected peer. It raises Refused if the address is not allowed."""

    def __init__(self, sockets: AbortableSockets, check: Callable[[str], None], *, deadline: float, stop: Stop) -> None:
        """Create a dialer that adds its pending sockets to `sockets`, so that a stop request can shut them down.

        `deadline` is a time on the monotonic clock."""
        self._sockets = sockets
        self._check = check
        self._deadline = deadline
        self._stop = stop
        self._pending: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._next_start = 0.0  # the time on the monotonic clock at which the next address may be tried
        self._error: OSError | None = None  # the error of the last address that failed
        self._refusal: Refused | None = None

    def connect(self, addresses: Sequence[AddressInfo]) -> tuple[socket.socket, str]:
        """Connect to one of the addresses. Return the non-blocking socket and the IP address of the peer.

        Raises the OSError for the last address that failed, TimeoutError at the deadline, Refused, Cancelled. If
        `check` rejects an address, no further address is tried, but pending attempts may still succeed."""
        waiting = interleave(addresses)[:MAX_ADDRESSES]
        try:
            while True:
                now = monotonic()
                if now >= self._deadline:
                    raise self._refusal or TimeoutError
                if waiting and not self._refusal and now >= self._next_start:
                    self._start_attempt(waiting.pop(0))
                elif not self._pending:
                    raise self._refusal or self._error or OSError(0, "it has no address")
                elif (connected := self._wait_for_attempt(self._wait_end(waiting) - now)) is not None:
                    return connected
        finally:
            for sock in self._pending.values():
                self._sockets.remove(sock)
                sock.close()

    def _wait_end(self, waiting: list[AddressInfo]) -> float:
        """Return the time on the monotonic clock at which the next wait for pending attempts must end."""
        return self._deadline if self._refusal or not waiting else min(self._deadline, self._next_start)

    def _start_attempt(self, info: AddressInfo) -> None:
        """Start a non-blocking connection attempt to one address."""
        family, kind, protocol, _, address = info
        try:
            self._check(str(address[0]))
        except Refused as error:
            self._refusal = error
            return
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # for example, because this machine has no IPv6
            self._record_failure(error)
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            enable_keepalive(sock)
            code = sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            sock.close()
            self._record_failure(error)
            return
        self._next_start = monotonic() + ATTEMPT_DELAY
        self._pending[sock.fileno()] = sock
        self._sockets.add(sock)
        self._poll.register(sock, select.POLLOUT)
        self._stop.raise_if_requested()  # a stop after `add` shuts the socket down

    def _wait_for_attempt(self, seconds: float) -> tuple[socket.socket, str] | None:
        """Wait at most `seconds` for a pending attempt to succeed. Return the socket and the peer's address, or None.

        Raises Refused, Cancelled, and an OSError for a lack of resources."""
        for number, _ in self._poll.poll(max(1, seconds * 1000)):
            sock = self._pending.pop(number)
            self._poll.unregister(number)
            self._sockets.remove(sock)
            try:
                self._stop.raise_if_requested()
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    # Check the peer too: a connection to 0.0.0.0, for example, ends at another address.
                    peer = str(sock.getpeername()[0])
                    self._check(peer)
                    return sock, peer
                failure = OSError(code, os.strerror(code))
            except OSError as error:  # the peer has already disconnected
                failure = error
            except BaseException:
                sock.close()
                raise
            sock.close()
            self._record_failure(failure)
        self._stop.raise_if_requested()
        return None

    def _record_failure(self, error: OSError) -> None:
        """Record a failed attempt, so that the next address is tried without delay.

        Raises `error` if its number is one of RESOURCE_ERRORS."""
        self._error = error
        self._next_start = 0.0
        if error.errno in RESOURCE_ERRORS:
            raise error


def enable_keepalive(sock: socket.socket) -> None:
    """Enable TCP keepalive, so that the kernel periodically checks whether the peer is still reachable."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not available on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
