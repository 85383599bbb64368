"""One connection: bytes in and out, each wait with an end, and an abort that reaches a blocked wait."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from time import monotonic
from typing import NoReturn

from mirror.errors import MirrorError, NetworkError
from mirror.util.cancellation import Stop

FLOOR = 1024  # bytes a second: a body that moves slower, over the idle time, is cut
_READ = 16 << 10  # bytes, of one read of heads and small bodies
SLICE = 64 << 10  # bytes, of one write: of its progress TLS tells only when all of it is done


class Pace:
    """The bounds of one exchange. With `until`: nothing waits longer than `idle`, and all ends by then.
    Without: bytes must move at FLOOR or faster, over each `idle` seconds spent waiting for the peer."""

    __slots__ = ("_moved", "_waited", "idle", "until")

    def __init__(self, idle: float, until: float | None = None) -> None:
        self.idle = idle
        self.until = until
        self._waited = 0.0
        self._moved = 0

    def patience(self, now: float) -> float:
        """Seconds that the next wait may last; zero or less: none."""
        if self.until is None:
            return self.idle - self._waited
        return min(self.idle, self.until - now)

    def too_slow(self, seconds: float, count: int) -> bool:
        """Note that `count` bytes took `seconds`. True: slower than the floor."""
        if self.until is not None:
            return False
        self._waited += seconds
        self._moved += count
        if self._waited < self.idle:
            return False
        slow = self._moved < FLOOR * self._waited
        self._waited, self._moved = 0.0, 0
        return slow


_NO_STOP = Stop()
_NO_PACE = Pace(0.0, 0.0)


class Connection:
    """An open connection in plain TCP; `tls` has one for TLS. One user at a time; `abort` is for any thread.

    subject: what errors are about, a request or a host.

    Raises NetworkError (net_error, timeout: not a byte came, too_slow, truncated) and Cancelled."""

    def __init__(self, sock: socket.socket, subject: object, peer: str | None = None) -> None:
        self.subject = subject
        self.peer = peer  # the address at the other end; None behind a proxy
        self.reused = False
        self.heard = False  # a byte of the current response has come
        self._sock = sock
        self._timeout: float | None = sock.gettimeout()
        self._scratch = memoryview(bytearray(_READ))
        self._pace = _NO_PACE
        self._stop = _NO_STOP
        self._lock = threading.Lock()  # between abort and close, so that no other socket's number is shut
        self._open = True
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def begin(self, stop: Stop, pace: Pace, subject: object) -> None:
        """A new exchange starts."""
        self._stop, self._pace, self.subject, self.heard = stop, pace, subject, False

    def bound(self, pace: Pace) -> None:
        """Other bounds from here on: a body's, after its head."""
        self._pace = pace

    def end(self) -> None:
        """The exchange is over; the connection goes to rest."""
        self._stop, self._pace = _NO_STOP, _NO_PACE
        self.reused = True

    def abort(self) -> None:
        """Wake the thread that waits on this connection, and make it unusable. Any thread, any number of times."""
        with self._lock, contextlib.suppress(OSError):  # the peer may have been faster
            if self._open:
                # The plain socket's: SSLSocket.shutdown drops the TLS layer first, under its reader's feet.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Waits for nothing."""
        self._say_goodbye()
        with self._lock:
            self._open = False
            self._sock.close()

    def _say_goodbye(self) -> None:
        """What the protocol below HTTP says before the end: TCP says it by itself."""

    def stale(self) -> bool:
        """Whether an idle connection is of no use: closed by the peer, or with bytes that nobody asked for."""
        return self.readable()

    def readable(self) -> bool:
        """Whether bytes, or an end, wait to be read."""
        return bool(self._poll.poll(0))

    def receive_into(self, view: memoryview) -> int:
        """Wait for bytes; 0: the peer has ended."""
        while True:
            begun = monotonic()
            self._arm(begun)
            try:
                count = self._sock.recv_into(view)
                break
            except TimeoutError as error:
                if error.errno is not None:
                    # Not ours: the kernel gave the peer up (TCP keepalive). The next read would see an end.
                    self._raise(error)
                if self._pace.until is not None or self._pace.too_slow(monotonic() - begun, 0):
                    self._raise(error)
            except OSError as error:
                self._raise(error)
        if self._stop.is_requested:
            self._stop.raise_if_requested()
        if count:
            self.heard = True
            if self._pace.until is None and self._pace.too_slow(monotonic() - begun, count):
                raise self._slow()
        return count

    def receive(self) -> memoryview:
        """Wait for bytes; valid until the next call. Empty: the peer has ended."""
        return self._scratch[: self.receive_into(self._scratch)]

    def send(self, data: bytes) -> None:
        """Send all of a small message, as part of the pace's time."""
        sent = 0
        try:
            while sent < len(data):
                self._arm(monotonic())  # for each part: `sendall` over TLS may give every record the whole time
                sent += self._sock.send(memoryview(data)[sent : sent + SLICE] if sent or len(data) > SLICE else data)
        except OSError as error:
            self._raise(error)
        if self._stop.is_requested:
            self._stop.raise_if_requested()

    def send_some(self, view: memoryview) -> int:
        """Send the beginning of `view` as soon as any fits; -> bytes sent, 0: something came to be read instead.

        A readable TLS socket may only hold a session ticket: that is no response, and goes away with `peek`."""
        self._set_timeout(0.0)
        while True:
            try:
                count = self._sock.send(view)
                break
            except OSError as error:
                events = self._awaited(error)
                if not events:
                    self._raise(error)
            if self._wait(events) & ~select.POLLOUT and events & select.POLLOUT:
                return 0
        if self._stop.is_requested:
            self._stop.raise_if_requested()
        self._pace.too_slow(0.0, count)
        return count

    def peek(self) -> memoryview | None:
        """What has come, valid until the next call; waits for nothing. None: nothing came. Empty: the peer ended."""
        self._set_timeout(0.0)
        try:
            count = self._sock.recv_into(self._scratch)
        except OSError as error:
            # An error other than "not yet" is raised again by the next read.
            return None if self._awaited(error) else self._scratch[:0]
        self.heard = self.heard or count > 0
        return self._scratch[:count]

    def _wait(self, events: int) -> int:
        """-> what of `events`, or what trouble, came first; 0: nothing yet, but within the pace."""
        begun = monotonic()
        patience = self._pace.patience(begun)
        if patience <= 0:
            raise self._late()
        poll = select.poll()
        poll.register(self._sock, events)
        came = sum(found for _, found in poll.poll(patience * 1000))
        self._stop.raise_if_requested()
        if (not came and self._pace.until is not None) or self._pace.too_slow(monotonic() - begun, 0):
            raise self._late()
        return came

    def _arm(self, now: float) -> None:
        patience = self._pace.patience(now)
        if patience <= 0:
            raise self._late()
        timeout = self._timeout
        if timeout is None or not patience * 0.95 <= timeout <= patience * 1.02:
            self._set_timeout(patience)

    def set_timeout(self, seconds: float) -> None:
        """For who uses the socket without the connection."""
        self._set_timeout(seconds)

    def _set_timeout(self, seconds: float) -> None:
        if seconds != self._timeout:
            self._sock.settimeout(seconds)
            self._timeout = seconds

    def _raise(self, error: OSError) -> NoReturn:
        self._stop.raise_if_requested()
        raise self._told(error) from error

    def _awaited(self, error: OSError) -> int:
        """What a send or read that may not wait would have waited for, as events of poll; 0: it failed."""
        return select.POLLIN | select.POLLOUT if isinstance(error, BlockingIOError) else 0

    def _told(self, error: OSError) -> MirrorError:
        if isinstance(error, TimeoutError) and error.errno is None:
            return self._late()
        return NetworkError(f"{self.subject}: the connection broke: {error.strerror or error}")

    def _late(self) -> NetworkError:
        if self._pace.until is None or self.heard:
            return self._slow()
        return NetworkError(f"{self.subject}: no response within {self._pace.idle:g} s", code="timeout")

    def _slow(self) -> NetworkError:
        if self._pace.until is None:
            return NetworkError(f"{self.subject}: less than 1 KiB/s over {self._pace.idle:g} s", code="too_slow")
        return NetworkError(f"{self.subject}: the response took too long", code="too_slow")
