"""Connects to the first of a host's addresses that takes a connection. Source: RFC 8305 ("Happy Eyeballs")."""

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

ATTEMPT_DELAY = 0.25  # seconds before the next address is tried beside those that do not answer: RFC 8305, 8
MOST_ADDRESSES = 16  # of one host that are tried
# Probes begin before middleboxes forget a connection (the quickest common ones after 60 s), so that it stays known to
# them while a registry works for minutes before it answers. A peer that is gone is noticed after 60 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds, seconds, probes
LACKING = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # no other address can do without


def interleave(addresses: Sequence[AddressInfo]) -> list[AddressInfo]:
    """The addresses with their families in turn, beginning with that of the first. Source: RFC 8305, 4."""
    families: dict[int, list[AddressInfo]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    longest = max(map(len, families.values()), default=0)
    return [family[turn] for turn in range(longest) for family in families.values() if turn < len(family)]


class AbortableSockets:
    """Sockets that `abort`, from any thread, wakes the users of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no socket is closed while it is being shut: its number may be another's then
        self._sockets: list[socket.socket] = []

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.append(sock)

    def remove(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.remove(sock)

    def close(self) -> None:
        """Close those that were not removed."""
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()

    def abort(self) -> None:
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):  # it may not be connected any more
                    sock.shutdown(socket.SHUT_RDWR)


class Dialer:
    """One attempt to connect to a host.

    check: told each address before it is connected to, and the one that was connected to; raises Refused."""

    def __init__(self, sockets: AbortableSockets, check: Callable[[str], None], *, until: float, stop: Stop) -> None:
        """until: of the monotonic clock."""
        self._sockets = sockets
        self._check = check
        self._until = until
        self._stop = stop
        self._pending: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._next_start = 0.0  # of the monotonic clock
        self._error: OSError | None = None  # of the last address that failed
        self._refused: Refused | None = None

    def connect(self, addresses: Sequence[AddressInfo]) -> tuple[socket.socket, str]:
        """A connected socket that does not block, and the address at its other end.

        Raises OSError (of the last address that failed; TimeoutError where none answers in time), Refused, Cancelled.
        An address that is refused ends the search, but for those that were tried before it."""
        waiting = interleave(addresses)[:MOST_ADDRESSES]
        try:
            while True:
                now = monotonic()
                if now >= self._until:
                    raise self._refused or TimeoutError
                if waiting and not self._refused and now >= self._next_start:
                    self._start(waiting.pop(0))
                elif not self._pending:
                    raise self._refused or self._error or OSError(0, "it has no address")
                elif (found := self._wait(self._pause(waiting) - now)) is not None:
                    return found
        finally:
            for sock in self._pending.values():
                self._sockets.remove(sock)
                sock.close()

    def _pause(self, waiting: list[AddressInfo]) -> float:
        """Until when to wait for those that were begun."""
        return self._until if self._refused or not waiting else min(self._until, self._next_start)

    def _start(self, info: AddressInfo) -> None:
        """Begin to connect to an address."""
        family, kind, protocol, _, address = info
        try:
            self._check(str(address[0]))
        except Refused as error:
            self._refused = error
            return
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as error:  # this machine has no IPv6, for one
            self._note_failure(error)
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(sock)
            code = sock.connect_ex(address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except OSError as error:
            sock.close()
            self._note_failure(error)
            return
        self._next_start = monotonic() + ATTEMPT_DELAY
        self._pending[sock.fileno()] = sock
        self._sockets.add(sock)
        self._poll.register(sock, select.POLLOUT)
        self._stop.raise_if_requested()  # after `add`: a stop from here on shuts it

    def _wait(self, seconds: float) -> tuple[socket.socket, str] | None:
        """The first that is connected, and the address at its other end, if one is within `seconds`."""
        for number, _ in self._poll.poll(max(1, seconds * 1000)):
            sock = self._pending.pop(number)
            self._poll.unregister(number)
            self._sockets.remove(sock)
            try:
                self._stop.raise_if_requested()
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    # Asked of the socket too: 0.0.0.0, for one, is not where a connection to it ends.
                    peer = str(sock.getpeername()[0])
                    self._check(peer)
                    return sock, peer
                failure = OSError(code, os.strerror(code))
            except OSError as error:  # it is gone already
                failure = error
            except BaseException:
                sock.close()
                raise
            sock.close()
            self._note_failure(failure)
        self._stop.raise_if_requested()
        return None

    def _note_failure(self, error: OSError) -> None:
        """An address failed: the next one is tried at once."""
        self._error = error
        self._next_start = 0.0
        if error.errno in LACKING:
            raise error


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask from time to time whether the peer is still there."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not everywhere
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
