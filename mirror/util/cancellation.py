"""Cancellation that also interrupts blocking calls, and the context that is passed to each blocking call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from mirror.errors import Cancelled
from mirror.util.structs import Struct

_LONGEST_CALL = 2.0  # maximum seconds that a `callback_on_stop` block waits for running callbacks when it exits


class Stop:
    """A flag that requests cancellation, and runs callbacks that interrupt blocking calls. Thread-safe.

    A request is permanent. A request on the parent also applies to its children. Callbacks run once, on the requesting
    thread, without a lock. They must be short and must not raise. Do not call `request` in a signal handler: the
    interrupted code may hold the lock.
    reason: why the stop was requested, for messages. code: the code of the errors that the stop causes."""

    def __init__(self, parent: Stop | None = None) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._wakes: threading.Event | None = None  # created by the first `sleep`, because few Stops ever sleep
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._called: threading.Event | None = None  # exists after a stop; set when all callbacks have returned
        self._caller = 0  # the id of the thread that runs the callbacks
        self.reason = ""
        self.code = Cancelled.code
        self._leave: Callable[[], None] = parent._add(self._parent_callback(parent)) if parent else _do_nothing

    def _parent_callback(self, parent: Stop) -> Callable[[], None]:
        """Return a callback that requests this stop when the parent's stop is requested."""
        return lambda: self.request(parent.reason, code=parent.code)

    @property
    def is_requested(self) -> bool:
        """Whether a stop was requested."""
        return self._requested

    def request(self, reason: str, *, code: str = Cancelled.code) -> None:
        """Request the stop, and run the callbacks. If it was requested before, do nothing and keep the first reason."""
        with self._lock:
            if self._requested:
                return
            self.reason, self.code = reason, code
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

    def raise_if_requested(self) -> None:
        """Raise Cancelled if a stop was requested."""
        if self._requested:
            raise self.error()

    def error(self) -> Cancelled:
        """Return the error for work that the stop cancels."""
        return Cancelled(self.reason or "cancelled", code=self.code)

    def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`. Raises Cancelled as soon as a stop is requested."""
        with self._lock:
            if self._wakes is None:
                self._wakes = threading.Event()
                if self._requested:
                    self._wakes.set()
        self._wakes.wait(max(0.0, seconds))
        self.raise_if_requested()

    def callback_on_stop(self, callback: Callable[[], None]) -> AbstractContextManager[None]:
        """Return a context manager that runs `callback` if a stop is requested before the `with` block exits.

        If the stop was already requested, the callback runs when the block is entered. It never runs after the
        block."""
        return _Registration(self, callback)

    def _add(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Register a callback, or run it now if a stop was already requested. Return a function that removes it."""
        with self._lock:
            stopped = self._requested
            if not stopped:
                number = self._next
                self._next += 1
                self._callbacks[number] = callback
        if stopped:
            callback()
            return _do_nothing

        def leave() -> None:
            """Remove the callback. If it is running, wait until it has returned."""
            with self._lock:
                called_by_stop = self._callbacks.pop(number, None) is None
            # The stop may be about to run the callback. Wait for it, so that it cannot shut down a socket that the
            # caller returns to a pool after this.
            if called_by_stop and self._called and self._caller != threading.get_ident():
                self._called.wait(_LONGEST_CALL)

        return leave

    def close(self) -> None:
        """Detach this stop from its parent, so that a request on the parent no longer affects this stop."""
        self._leave()


class _Registration(AbstractContextManager[None]):
    """The context manager that `Stop.callback_on_stop` returns.

    It is a class because one is created for every request, and `contextmanager` takes three times as long."""

    __slots__ = ("_callback", "_leave", "_stop")

    def __init__(self, stop: Stop, callback: Callable[[], None]) -> None:
        self._stop = stop
        self._callback = callback

    def __enter__(self) -> None:
        self._leave = self._stop._add(self._callback)

    def __exit__(self, *_: object) -> None:
        self._leave()


def _do_nothing() -> None:
    pass


def _no_progress(count: int) -> None:
    """Do nothing: the default of Work.progress."""


class Work(Struct, frozen=True):
    """The context of a blocking call: how it is cancelled, how it reports progress, and whether it retries requests.

    retries: whether the call retries failed requests. False in a blob transfer, which is retried as a whole, so that no
    permit is held during the waits."""

    stop: Stop
    progress: Callable[[int], None] = _no_progress  # bytes moved since the last call
    retries: bool = True
    urgent: bool = False  # whether to ignore the host's rate limit; for cleanup shortly before the process ends

    @contextmanager
    def with_grace_period(self, seconds: float) -> Iterator[Work]:
        """Return a context manager that yields a copy of this context. The copy is stopped `seconds` after this one.

        The copy is used to receive responses that must not be lost. Raises Cancelled if the stop was already
        requested."""
        self.stop.raise_if_requested()
        stop = Stop()
        timers: list[threading.Timer] = []

        def start_timer() -> None:
            """Start a timer that requests the stop of the copy after `seconds`."""
            timer = threading.Timer(seconds, stop.request, args=(self.stop.reason,), kwargs={"code": self.stop.code})
            timers.append(timer)
            timer.start()

        try:
            with self.stop.callback_on_stop(start_timer):
                yield Work(stop, self.progress, self.retries, self.urgent)
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()

    def with_progress(self, progress: Callable[[int], None]) -> Work:
        """Return a copy of this context that also reports progress to `progress`."""

        def report(count: int) -> None:
            """Report `count` bytes to both callbacks."""
            self.progress(count)
            progress(count)

        return Work(self.stop, report, self.retries, self.urgent)

    def without_retries(self) -> Work:
        """Return a copy of this context with which calls do not retry requests."""
        return Work(self.stop, self.progress, False, self.urgent)
