"""Cancellation: a stop that reaches blocked calls, and what a call carries along: its stop, progress, retries."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mirror.errors import Cancelled
from mirror.util.structs import Struct

_LONGEST_CALL = 2.0  # seconds that leaving waits for the callbacks of a stop


class Stop:
    """A cancellation that reaches blocked sockets. Any thread may request it; it is never taken back.

    A child is stopped with its parent. Callbacks run once, on the requesting thread, outside of any lock; they are
    short and do not raise. Not for a signal handler, which may have interrupted a holder of the lock."""

    def __init__(self, parent: Stop | None = None) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._wakes: threading.Event | None = None  # made for the first who sleeps: there are as many stops as requests
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._called: threading.Event | None = None  # once stopped: whether all callbacks have returned
        self._caller = 0  # the thread that calls them
        self.reason = ""
        self._leave: Callable[[], None] = parent._add(self._from(parent)) if parent else _nothing

    def _from(self, parent: Stop) -> Callable[[], None]:
        return lambda: self.request(parent.reason)

    @property
    def requested(self) -> bool:
        return self._requested

    def request(self, reason: str) -> None:
        """Stop. The first reason stays."""
        with self._lock:
            if self._requested:
                return
            self.reason = reason
            self._requested = True
            if self._wakes is not None:
                self._wakes.set()
            callbacks, self._callbacks = list(self._callbacks.values()), {}
            self._caller = threading.get_ident()
            called = self._called = threading.Event()
        try:
            for callback in callbacks:
                callback()
        finally:
            called.set()

    def check(self) -> None:
        """Raises Cancelled if stopped."""
        if self._requested:
            raise Cancelled(self.reason or "cancelled")

    def sleep(self, seconds: float) -> None:
        """Wait, or raise Cancelled as soon as stopped."""
        with self._lock:
            if self._wakes is None:
                self._wakes = threading.Event()
                if self._requested:
                    self._wakes.set()
        self._wakes.wait(max(0.0, seconds))
        self.check()

    @contextmanager
    def calls(self, callback: Callable[[], None]) -> Iterator[None]:
        """While inside, and not after, a stop calls `callback` (at once if already stopped)."""
        leave = self._add(callback)
        try:
            yield
        finally:
            leave()

    def _add(self, callback: Callable[[], None]) -> Callable[[], None]:
        with self._lock:
            stopped = self._requested
            if not stopped:
                number = self._next
                self._next += 1
                self._callbacks[number] = callback
        if stopped:
            callback()
            return _nothing

        def leave() -> None:
            with self._lock:
                taken = self._callbacks.pop(number, None) is None
            # A stop that has taken the callback may be about to call it: whoever gives back what it acts on (a socket,
            # to a pool) must not be faster.
            if taken and self._called and self._caller != threading.get_ident():
                self._called.wait(_LONGEST_CALL)

        return leave

    def close(self) -> None:
        """Forget the parent; a closed child is no longer stopped by it."""
        self._leave()


def _nothing() -> None:
    pass


def _no_progress(count: int) -> None:
    pass


class Work(Struct, frozen=True):
    """What a call carries along: who may stop it, where its progress goes, whether small requests may be
    tried again inside the call (in a transfer they may not: the transfer as a whole is, without a slot)."""

    stop: Stop
    progress: Callable[[int], None] = _no_progress  # bytes moved since the last call
    retries: bool = True
    urgent: bool = False  # does not wait for the turn of its host: a last word before the end

    @contextmanager
    def outliving(self, seconds: float) -> Iterator[Work]:
        """A Work that is stopped `seconds` after this one: for an answer that is better waited for than lost.

        Raises Cancelled if this one is stopped already."""
        self.stop.check()
        stop = Stop()
        timers: list[threading.Timer] = []

        def later() -> None:
            timer = threading.Timer(seconds, stop.request, args=(self.stop.reason,))
            timers.append(timer)
            timer.start()

        try:
            with self.stop.calls(later):
                yield Work(stop, self.progress, self.retries, self.urgent)
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()

    def once(self) -> Work:
        """The same, but the first failure of a request is the caller's."""
        return Work(self.stop, self.progress, False, self.urgent)
