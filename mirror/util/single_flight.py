"""Synchronization of threads: single-flight calls, a gate that threads pass one by one, and a lazily created value."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from mirror.errors import Cancelled, MirrorError, NetworkError
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Clock

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

WAIT_LIMIT = 300  # seconds that a caller waits for the call of another thread; the calls have shorter time limits
HAND_OVER = 5.0  # seconds after which the next thread may pass a gate even if its holder has not left


def copy_error(error: MirrorError) -> MirrorError:
    """Return a copy of `error` that can be raised in another thread.

    If two threads raised the same exception, their tracebacks would be mixed."""
    twin = copy.copy(error)
    twin.__cause__ = error
    return twin


class _SharedCall(Generic[T]):
    """The state of a call in progress: its result or error, and the threads that wait for the call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wakes: set[threading.Event] = set()
        self._ended = False
        self.result: T | None = None
        self.error: MirrorError | None = Cancelled("the call was cancelled")  # replaced when the call ends

    def end(self) -> None:
        """Mark the call as ended, and wake all threads that wait for it."""
        with self._lock:
            self._ended = True
            wakes, self._wakes = self._wakes, set()
        for wake in wakes:
            wake.set()

    def wait(self, stop: Stop, seconds: float | None) -> bool:
        """Wait at most `seconds` for the call to end. Return whether it has ended. Raises Cancelled after a stop."""
        wake = threading.Event()
        with self._lock:
            if self._ended:
                return True
            self._wakes.add(wake)
        with stop.callback_on_stop(wake.set):
            wake.wait(seconds)
        with self._lock:
            self._wakes.discard(wake)
            if self._ended:
                return True
        stop.raise_if_requested()
        return False


class SingleFlight(Generic[K, T]):
    """Shares calls among threads: callers with the same key wait for the call in progress and get its result.

    Thread-safe. If the call fails, all waiting callers raise its error. If the call was cancelled, one of the waiting
    callers makes the call again."""

    def __init__(self, what: str, timeout: float | None = WAIT_LIMIT) -> None:
        """Prepare to share calls. what: the name of the calls in error messages.

        timeout: the maximum number of seconds to wait for another thread's call. None means that there is no limit."""
        self._what = what
        self._timeout = timeout
        self._lock = threading.Lock()
        self._calls: dict[K, _SharedCall[T]] = {}

    def share(self, key: K, call: Callable[[], T], stop: Stop) -> T:
        """Make the call, or wait for a call with the same key that another thread is making. Return its result.

        Raises the error of the call, Cancelled, or NetworkError (timeout) if the other thread's call takes too long."""
        while True:
            with self._lock:
                shared = self._calls.get(key)
                leads = shared is None
                if shared is None:
                    shared = self._calls[key] = _SharedCall()
            if leads:
                return self._lead(key, shared, call)
            if not shared.wait(stop, self._timeout):
                raise NetworkError(
                    f"{self._what}: another thread's call did not finish within {self._timeout} s", code="timeout"
                )
            error = shared.error
            if error is None:
                return shared.result  # type: ignore[return-value]  # set with error = None
            if not isinstance(error, Cancelled):
                raise copy_error(error)

    def _lead(self, key: K, shared: _SharedCall[T], call: Callable[[], T]) -> T:
        """Make the call on behalf of all threads that share it, then wake the waiting threads."""
        try:
            result = shared.result = call()
            shared.error = None
        except MirrorError as error:
            shared.error = error
            raise
        finally:
            with self._lock:
                del self._calls[key]
            shared.end()
        return result


class Gate:
    """A gate that lets one thread pass at a time, until it is opened permanently. Thread-safe.

    The thread that passed is the holder, and may enter again. If the holder neither leaves nor enters again within
    `hand_over` seconds on `clock`, the next thread may pass. A blocked holder therefore does not block all threads."""

    __slots__ = ("_clock", "_hand_over", "_holder", "_lock", "_opened", "_since", "_wakes")

    def __init__(self, clock: Clock, hand_over: float = HAND_OVER) -> None:
        self._clock = clock
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._opened = False
        self._holder: int | None = None  # ident of the thread that passed
        self._since = 0.0  # when it passed
        self._wakes: set[threading.Event] = set()

    def enter(self, stop: Stop) -> bool:
        """Return True if the calling thread may pass. Otherwise wait until the gate may be free, and return False.

        If this returns False, the caller checks whether it still needs to pass, and calls this again if so. Raises
        Cancelled after a stop."""
        me = threading.get_ident()
        with self._lock:
            now = self._clock.now()
            if self._opened:
                return True
            if self._holder is None or self._holder == me or now >= self._since + self._hand_over:
                self._holder, self._since = me, now
                return True
            wake = threading.Event()
            self._wakes.add(wake)
            left = self._since + self._hand_over - now
        with stop.callback_on_stop(wake.set):
            wake.wait(left)
        with self._lock:
            self._wakes.discard(wake)
        stop.raise_if_requested()
        return False

    def leave(self) -> None:
        """If the calling thread is the holder, let the next thread pass. Otherwise do nothing."""
        with self._lock:
            if self._holder != threading.get_ident():
                return
            self._holder = None
            wakes = self._take_waiters()
        for wake in wakes:
            wake.set()

    def open(self) -> None:
        """Let all threads pass from now on."""
        with self._lock:
            self._opened = True
            self._holder = None
            wakes = self._take_waiters()
        for wake in wakes:
            wake.set()

    def _take_waiters(self) -> set[threading.Event]:
        """Remove the events of the waiting threads, and return them."""
        wakes, self._wakes = self._wakes, set()
        return wakes


class LazyValue(Generic[T]):
    """A value that is created on first use. Thread-safe. No lock is held while it is created.

    If the creation fails, all later calls raise the same error, unless it was Cancelled."""

    def __init__(self, factory: Callable[[Work], T]) -> None:
        self._factory = factory
        self._calls: SingleFlight[None, None] = SingleFlight("a value", timeout=None)
        self._created: list[T] = []
        self._error: MirrorError | None = None

    def get(self, work: Work) -> T:
        """Return the value. On first use, create it. Raises the error with which the creation failed, or Cancelled."""
        while not self._created:
            if self._error is not None:
                raise copy_error(self._error)
            self._calls.share(None, lambda: self._create(work), work.stop)
        return self._created[0]

    def value_if_created(self) -> T | None:
        """Return the value, or None if it has not been created."""
        return self._created[0] if self._created else None

    def _create(self, work: Work) -> None:
        """Create the value unless it exists or its creation has failed. Raises Cancelled."""
        if self._created or self._error is not None:
            return
        try:
            self._created.append(self._factory(work))
        except Cancelled:
            raise
        except MirrorError as error:
            self._error = error
            raise
