"""A TCP connection with time limits for reads and writes, which any thread can abort."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from time import monotonic
from typing import NoReturn

from mirror.errors import MirrorError, NetworkError
from mirror.util.cancellation import Stop

MIN_RATE = 1024  # bytes per second, averaged over the idle timeout; a slower body is an error
_READ_SIZE = 16 << 10  # bytes per read of headers and small bodies
MAX_WRITE = 64 << 10  # bytes per write; a TLS write reports progress only when it is complete


class Timeouts:
    """The time limits for one exchange: an idle timeout, and either a deadline or a minimum rate.

    `idle` is in seconds; `deadline` is a time on the monotonic clock, or None. With a deadline, one wait lasts at most
    `idle` seconds, and all waits end at the deadline. Without a deadline, the average rate must be at least MIN_RATE,
    measured over each `idle` seconds spent waiting for the peer."""

    __slots__ = ("_transferred", "_waited", "deadline", "idle")

    def __init__(self, idle: float, deadline: float | None = None) -> None:
        self.idle = idle
        self.deadline = deadline
        self._waited = 0.0
        self._transferred = 0

    def remaining(self, now: float) -> float:
        """Return how many seconds the next wait may last. Zero or less means that no time is left.

        `now` is the current time on the monotonic clock."""
        if self.deadline is None:
            return self.idle - self._waited
        return min(self.idle, self.deadline - now)

    def record_progress(self, seconds: float, count: int) -> bool:
        """Record a wait of `seconds`, in which `count` bytes were transferred. Return whether the rate is too low."""
        if self.deadline is not None:
            return False
        self._waited += seconds
        self._transferred += count
        if self._waited < self.idle:
            return False
        too_slow = self._transferred < MIN_RATE * self._waited
        self._waited, self._transferred = 0.0, 0
        return too_slow


_NO_STOP = Stop()
_NO_TIMEOUTS = Timeouts(0.0, 0.0)


class Connection:
    """An open TCP connection without TLS. Only one thread may use it at a time, but any thread may call `abort`.

    Error messages name `subject`, which is the request or the host. Methods raise Cancelled and NetworkError. The codes
    of a NetworkError are net_error, truncated, timeout (no byte of the response was received in time) and too_slow."""

    def __init__(self, sock: socket.socket, subject: object, peer: str | None = None) -> None:
        self.subject = subject
        self.peer = peer  # IP address of the peer; None behind a proxy
        self.reused = False
        self.received_any = False  # at least one byte of the current response was received
        self._sock = sock
        self._timeout: float | None = sock.gettimeout()
        self._buffer = memoryview(bytearray(_READ_SIZE))
        self._timeouts = _NO_TIMEOUTS
        self._stop = _NO_STOP
        self._lock = threading.Lock()  # prevents `abort` from shutting down a new socket that reuses the descriptor
        self._open = True
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def start_exchange(self, stop: Stop, timeouts: Timeouts, subject: object) -> None:
        """Prepare to send a request and receive its response.

        `stop` can cancel this exchange, `timeouts` limit its duration, and its error messages start with `subject`."""
        self._stop, self._timeouts, self.subject, self.received_any = stop, timeouts, subject, False

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Replace the time limits, for example between the headers and the body."""
        self._timeouts = timeouts

    def end_exchange(self) -> None:
        """Record that the exchange is complete, so that the connection can be reused for another request."""
        self._stop, self._timeouts = _NO_STOP, _NO_TIMEOUTS
        self.reused = True

    def abort(self) -> None:
        """Shut down the socket, which wakes a thread that is blocked on it.

        May be called from any thread, and more than once."""
        with self._lock, contextlib.suppress(OSError):  # the peer may have closed the connection
            if self._open:
                # SSLSocket.shutdown would drop the TLS layer while another thread reads from it.
                socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection without waiting."""
        self._send_close_notify()
        with self._lock:
            self._open = False
            self._sock.close()

    def _send_close_notify(self) -> None:
        """Do nothing. A TLS connection overrides this method to send a close_notify alert."""

    def is_stale(self) -> bool:
        """Return whether an idle connection must not be reused: the peer has closed it or sent unsolicited bytes."""
        return self.is_readable()

    def is_readable(self) -> bool:
        """Return whether a read would not block: bytes were received, or the peer has closed the connection."""
        return bool(self._poll.poll(0))

    def receive_into(self, view: memoryview) -> int:
        """Wait for bytes and read them into `view`. Return the number of bytes read.

        The number is 0 if the peer has closed the connection."""
        while True:
            started = monotonic()
            self._apply_timeout(started)
            try:
                count = self._sock.recv_into(view)
                break
            except TimeoutError as error:
                if error.errno is not None:
                    # The kernel reports that its TCP keepalive probes got no response. Another read would return 0.
                    self._raise_error(error)
                if self._timeouts.deadline is not None or self._timeouts.record_progress(monotonic() - started, 0):
                    self._raise_error(error)
            except OSError as error:
                self._raise_error(error)
        if self._stop.is_requested:
            self._stop.raise_if_requested()
        if count:
            self.received_any = True
            if self._timeouts.deadline is None and self._timeouts.record_progress(monotonic() - started, count):
                raise self._too_slow_error()
        return count

    def receive(self) -> memoryview:
        """Wait for bytes and return them. The result is empty if the peer has closed the connection.

        The next call overwrites the returned bytes."""
        return self._buffer[: self.receive_into(self._buffer)]

    def send(self, data: bytes) -> None:
        """Send all of `data`, such as request headers, within the time limits."""
        sent = 0
        try:
            while sent < len(data):
                # Set the timeout for each part, because `sendall` over TLS may apply it to every record.
                self._apply_timeout(monotonic())
                part = memoryview(data)[sent : sent + MAX_WRITE] if sent or len(data) > MAX_WRITE else data
                sent += self._sock.send(part)
        except OSError as error:
            self._raise_error(error)
        if self._stop.is_requested:
            self._stop.raise_if_requested()

    def send_some(self, view: memoryview) -> int:
        """Send part of `view`. Return the number of bytes sent, or 0 if received bytes must be read first.

        With TLS, the received bytes may be a session ticket instead of a response; `receive_available` consumes it."""
        self.set_timeout(0.0)
        while True:
            try:
                count = self._sock.send(view)
                break
            except OSError as error:
                events = self._blocking_events(error)
                if not events:
                    self._raise_error(error)
            if self._wait_for_events(events) & ~select.POLLOUT and events & select.POLLOUT:
                return 0
        if self._stop.is_requested:
            self._stop.raise_if_requested()
        self._timeouts.record_progress(0.0, count)
        return count

    def receive_available(self) -> memoryview | None:
        """Return the bytes that can be read without waiting, or None if there are none.

        The result is empty if the peer has closed the connection. The next call overwrites the returned bytes."""
        self.set_timeout(0.0)
        try:
            count = self._sock.recv_into(self._buffer)
        except OSError as error:
            # Any error except "would block" is raised again by the next read.
            return None if self._blocking_events(error) else self._buffer[:0]
        self.received_any = self.received_any or count > 0
        return self._buffer[:count]

    def _wait_for_events(self, events: int) -> int:
        """Wait for one of the poll `events` or a socket error.

        Return the events that occurred, or 0 if none occurred but time remains for another wait."""
        started = monotonic()
        remaining = self._timeouts.remaining(started)
        if remaining <= 0:
            raise self._timeout_error()
        poll = select.poll()
        poll.register(self._sock, events)
        occurred = sum(flags for _, flags in poll.poll(remaining * 1000))
        self._stop.raise_if_requested()
        timed_out = not occurred and self._timeouts.deadline is not None
        if timed_out or self._timeouts.record_progress(monotonic() - started, 0):
            raise self._timeout_error()
        return occurred

    def _apply_timeout(self, now: float) -> None:
        """Set the socket's timeout to the remaining time. A small difference is ignored to save a system call."""
        remaining = self._timeouts.remaining(now)
        if remaining <= 0:
            raise self._timeout_error()
        timeout = self._timeout
        if timeout is None or not remaining * 0.95 <= timeout <= remaining * 1.02:
            self.set_timeout(remaining)

    def set_timeout(self, seconds: float) -> None:
        """Set the socket's timeout, in seconds."""
        if seconds != self._timeout:
            self._sock.settimeout(seconds)
            self._timeout = seconds

    def _raise_error(self, error: OSError) -> NoReturn:
        """Raise the MirrorError for a socket error. After a stop request, raise Cancelled instead."""
        self._stop.raise_if_requested()
        raise self._translate(error) from error

    def _blocking_events(self, error: OSError) -> int:
        """Return the poll events to wait for if `error` means that the call would block, or 0 for any other error."""
        return select.POLLIN | select.POLLOUT if isinstance(error, BlockingIOError) else 0

    def _translate(self, error: OSError) -> MirrorError:
        """Return the MirrorError for a socket error."""
        if isinstance(error, TimeoutError) and error.errno is None:
            return self._timeout_error()
        return NetworkError(f"{self.subject}: the connection failed: {error.strerror or error}")

    def _timeout_error(self) -> NetworkError:
        """Return the error for a wait that took too long."""
        if self._timeouts.deadline is None or self.received_any:
            return self._too_slow_error()
        return NetworkError(f"{self.subject}: no response within {self._timeouts.idle:g} s", code="timeout")

    def _too_slow_error(self) -> NetworkError:
        """Return the error for a transfer below MIN_RATE, or for a response that was not complete at the deadline."""
        if self._timeouts.deadline is None:
            text = f"{self.subject}: transferred less than 1 KiB/s over {self._timeouts.idle:g} s"
            return NetworkError(text, code="too_slow")
        return NetworkError(f"{self.subject}: the response was not complete at the deadline", code="too_slow")
