"""What bounds the work: cancellation, and the permits, rates and pauses of hosts.

Seen by the HTTP session (which pauses a host that answers 429) and by the transfer manager (which admits no
work for a host that is paused) alike, so that both speak of the same host.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mirror.availability import Availability
from mirror.backoff import Clock, SystemClock
from mirror.errors import Cancelled
from mirror.structs import Struct, field

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


class Rate(Struct, frozen=True):
    """At most `count` requests in each `seconds`."""

    count: int
    seconds: float


class _HostState(Struct):
    paused_until: float = 0.0
    next_free: float = 0.0  # of the rate
    requests: Counter[str] = field(default_factory=Counter)


class HostLimits(Availability):
    """One host: how much may be in flight, how often it may be asked, and since when it is left alone.

    Thread-safe. Times are of `clock`, in seconds."""

    def __init__(self, name: str, parallel: int = 8, rate: Rate | None = None, clock: Clock | None = None) -> None:
        super().__init__(name, clock or SystemClock())
        self.parallel = parallel
        self.rate = rate
        self._lock = threading.Lock()
        self._state = _HostState()
        self.on_hold: Callable[[float], None] = _ignore_hold  # told the time until which nothing may start

    def ready_at(self) -> float:
        """The time from which a request may begin; not later than now: at once."""
        with self._lock:
            return max(self._state.paused_until, self._state.next_free)

    def sent(self, kind: str) -> None:
        """Count one request of `kind` (`HEAD manifest`) that went out."""
        with self._lock:
            self._state.requests[kind] += 1

    def take(self) -> float:
        """Take the turn of one request. -> seconds to wait before sending it."""
        with self._lock:
            now, state = self._clock.now(), self._state
            start = max(now, state.paused_until)
            hold = 0.0
            if self.rate:
                start = max(start, state.next_free)
                state.next_free = hold = start + self.rate.seconds / self.rate.count
        if hold > now:
            self.on_hold(hold)
        return start - now

    def pause(self, seconds: float) -> bool:
        """Nothing new for `seconds`. True if it was not paused before (say it only once)."""
        with self._lock:
            until = self._clock.now() + seconds
            longer = until > self._state.paused_until
            if longer:
                fresh = self._state.paused_until <= self._clock.now()
                self._state.paused_until = until
        if longer:
            self.on_hold(until)
        return longer and fresh

    def requests(self) -> dict[str, int]:
        """Requests sent, by method and kind."""
        with self._lock:
            return dict(sorted(self._state.requests.items()))


def _ignore_hold(until: float) -> None:
    pass


class Limits:
    """The limits of all hosts of a run, made on first use. Thread-safe."""

    def __init__(self, clock: Clock | None = None, default_parallel: int = 8) -> None:
        self.clock = clock or SystemClock()
        self._default = default_parallel
        self._lock = threading.Lock()
        self._hosts: dict[str, HostLimits] = {}
        self.retries = 0
        self.waited = 0.0  # seconds, summed over threads
        self.longest_wait = 0.0  # seconds
        self._queued = threading.local()
        self.retry_after: float | None = None  # the longest wait asked for beyond what we wait, seconds

    def configure(self, name: str, parallel: int, rate: Rate | None = None) -> HostLimits:
        """Set a host's limits; before its first use."""
        with self._lock:
            host = self._hosts[name] = HostLimits(name, parallel, rate, self.clock)
        return host

    def host(self, name: str) -> HostLimits:
        with self._lock:
            found = self._hosts.get(name)
            if found is None:
                found = self._hosts[name] = HostLimits(name, self._default, None, self.clock)
        return found

    def all(self) -> list[HostLimits]:
        with self._lock:
            return sorted(self._hosts.values(), key=lambda host: host.name)

    def note_retry(self, waited: float = 0.0) -> None:
        """One more try of anything, after `waited` seconds."""
        with self._lock:
            self.retries += 1
            self.waited += waited
            self.longest_wait = max(self.longest_wait, waited)

    def note_queued(self, seconds: float) -> None:
        """This thread has waited until a host was ready: it was paused, or its rate was used up."""
        self._queued.seconds = self.queued() + seconds

    def queued(self) -> float:
        """Seconds that this thread has waited so far until hosts were ready. They are in no time budget."""
        seconds: float = getattr(self._queued, "seconds", 0.0)
        return seconds

    def note_refused_wait(self, seconds: float) -> None:
        """A server asked for a wait that is longer than we wait."""
        with self._lock:
            self.retry_after = max(seconds, self.retry_after or 0.0)
