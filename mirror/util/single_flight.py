"""Single-flight: one call or value shared by all callers that need it, and a gate for one request at a time."""

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

PATIENCE = 300  # seconds that one waits for another's call; the calls themselves end sooner
HAND_OVER = 5.0  # seconds after which a gate's holder, who said nothing, is no longer waited for


def again(error: MirrorError) -> MirrorError:
    """The same error for another thread: an exception that is raised in two of them mixes their tracebacks."""
    twin = copy.copy(error)
    twin.__cause__ = error
    return twin


class _Flight(Generic[T]):
    """One call in progress, and who waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wakes: set[threading.Event] = set()
        self._ended = False
        self.result: T | None = None
        self.error: MirrorError | None = Cancelled("the call was given up")  # until it ends otherwise

    def end(self) -> None:
        with self._lock:
            self._ended = True
            wakes, self._wakes = self._wakes, set()
        for wake in wakes:
            wake.set()

    def wait(self, stop: Stop, seconds: float | None) -> bool:
        """Until it has ended: True. False: `seconds` have passed. Raises Cancelled."""
        wake = threading.Event()
        with self._lock:
            if self._ended:
                return True
            self._wakes.add(wake)
        with stop.calls(wake.set):
            wake.wait(seconds)
        with self._lock:
            self._wakes.discard(wake)
            if self._ended:
                return True
        stop.check()
        return False


class Flights(Generic[K, T]):
    """Calls by key: while one is in progress, who asks for the same key waits for it and gets what it got.

    Thread-safe. An error is for all who wait, but for the cancellation of the one who makes the call: then
    another of them makes it."""

    def __init__(self, what: str, patience: float | None = PATIENCE) -> None:
        """patience: seconds; None: another's call is waited for without end."""
        self._what = what
        self._patience = patience
        self._lock = threading.Lock()
        self._flights: dict[K, _Flight[T]] = {}

    def share(self, key: K, call: Callable[[], T], stop: Stop) -> T:
        """The result of `call`, made here or by another thread. Raises what it raises; Cancelled; NetworkError
        (timeout) if another's call does not end."""
        while True:
            with self._lock:
                flight = self._flights.get(key)
                leads = flight is None
                if flight is None:
                    flight = self._flights[key] = _Flight()
            if leads:
                return self._lead(key, flight, call)
            if not flight.wait(stop, self._patience):
                raise NetworkError(f"{self._what}: no answer within {self._patience} s", code="timeout")
            error = flight.error
            if error is None:
                return flight.result  # type: ignore[return-value]  # set with error = None
            if not isinstance(error, Cancelled):
                raise again(error)

    def _lead(self, key: K, flight: _Flight[T], call: Callable[[], T]) -> T:
        try:
            result = flight.result = call()
            flight.error = None
        except MirrorError as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.end()
        return result


class Gate:
    """Lets one thread through, and the others wait, until it is opened for good.

    Who was let through may enter again. One that says nothing for HAND_OVER seconds of `clock` is followed by
    the next, so that a holder which is itself made to wait can lock nobody out. Thread-safe."""

    __slots__ = ("_clock", "_holder", "_lock", "_opened", "_since", "_wakes")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._opened = False
        self._holder: int | None = None  # ident of the thread that was let through
        self._since = 0.0  # when it was
        self._wakes: set[threading.Event] = set()

    @property
    def opened(self) -> bool:
        return self._opened

    def enter(self, stop: Stop) -> bool:
        """True: go on. False, after a wait: something has changed; look at it, then enter again. Raises Cancelled."""
        me = threading.get_ident()
        with self._lock:
            now = self._clock.now()
            if self._opened:
                return True
            if self._holder is None or self._holder == me or now >= self._since + HAND_OVER:
                self._holder, self._since = me, now
                return True
            wake = threading.Event()
            self._wakes.add(wake)
            left = self._since + HAND_OVER - now
        with stop.calls(wake.set):
            wake.wait(left)
        with self._lock:
            self._wakes.discard(wake)
        stop.check()
        return False

    def leave(self) -> None:
        """If this thread holds it: the next may go."""
        with self._lock:
            if self._holder != threading.get_ident():
                return
            self._holder = None
            wakes = self._emptied()
        for wake in wakes:
            wake.set()

    def open(self) -> None:
        """Nobody waits here any more."""
        with self._lock:
            self._opened = True
            self._holder = None
            wakes = self._emptied()
        for wake in wakes:
            wake.set()

    def _emptied(self) -> set[threading.Event]:
        wakes, self._wakes = self._wakes, set()
        return wakes


class Once(Generic[T]):
    """A value that is made when it is first asked for, once for all callers. Any thread.

    A failure is kept as well, but for a stop."""

    def __init__(self, make: Callable[[Work], T]) -> None:
        self._make = make
        self._flights: Flights[None, None] = Flights("a value", patience=None)
        self._made: list[T] = []
        self._error: MirrorError | None = None

    def get(self, work: Work) -> T:
        """Raises what making it raises, and Cancelled."""
        while not self._made:
            if self._error is not None:
                raise again(self._error)
            self._flights.share(None, lambda: self._try(work), work.stop)
        return self._made[0]

    def peek(self) -> T | None:
        """The value, if it was made already."""
        return self._made[0] if self._made else None

    def _try(self, work: Work) -> None:
        if self._made or self._error is not None:
            return
        try:
            self._made.append(self._make(work))
        except Cancelled:
            raise
        except MirrorError as error:
            self._error = error
            raise
