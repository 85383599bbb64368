"""Limits of hosts: parallel requests, rates, pauses, and whether a host may be contacted at all.

Used by the HTTP session, which pauses a host that answers 429, and by the transfers, which start no work for a
paused host."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from mirror.errors import MirrorError, RateLimited
from mirror.util.retry_policy import Clock, SystemClock
from mirror.util.structs import Struct, field

PROBE_EVERY = 60.0  # seconds between two tries of what is not asked any more


class _Refusal(Struct):
    """Why something is not asked any more, and when one request tries it again."""

    error: MirrorError
    probe_at: float

    def is_due(self, now: float) -> bool:
        """Whether it is time for a probe; it counts as begun."""
        due = now >= self.probe_at
        if due:
            self.probe_at = now + PROBE_EVERY
        return due


class Availability:
    """Of one host. Thread-safe; times are of the clock, in seconds."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._guard = threading.Lock()
        self._down: _Refusal | None = None
        self._used_up: dict[str, _Refusal] = {}  # by method and kind

    def mark_down(self, error: MirrorError) -> bool:
        """`error` outlived all retries of a request: nothing more is asked of the host. True the first time."""
        with self._guard:
            first = self._down is None
            if self._down is None:  # those who find out later do not put off the probe
                self._down = _Refusal(error, self._probe_at(error))
            self._down.error = error
        return first

    def use_up(self, kind: str, error: MirrorError) -> None:
        """A quota that only requests of `kind` (`GET manifest`) count against is used up: no more of them are sent."""
        with self._guard:
            self._used_up.setdefault(kind, _Refusal(error, self._probe_at(error)))

    def _probe_at(self, error: MirrorError) -> float:
        return self._clock.now() + max(PROBE_EVERY, error.retry_after or 0.0)

    def answered(self, kind: str, status: int, *, probe: bool) -> None:
        """A request of `kind` was answered. probe: what `check` said of it.

        Any answer shows that a silent host is there; one that limits requests (429) is asked again only after a probe
        got another answer."""
        if self._down is None and not self._used_up:
            return
        with self._guard:
            passed = probe and status != 429
            if self._down is not None and (passed or not isinstance(self._down.error, RateLimited)):
                self._down = None
            if passed:
                self._used_up.pop(kind, None)

    @property
    def down(self) -> bool:
        """Whether its work fails at once, but for the probes: it is silent, or limits requests."""
        return self._down is not None

    def check(self, kind: str = "") -> bool:
        """Raises the error for which a request of `kind` is not sent, but for one probe a minute (later where the host
        asked for that). True: this one is the probe."""
        if self._down is None and kind not in self._used_up:
            return False
        with self._guard:
            refusal = self._down or self._used_up.get(kind)
            if refusal is None:
                return False
            if refusal.is_due(self._clock.now()):
                return True
            error = refusal.error
        raise error.told(self.reason(error))

    def reason(self, error: MirrorError) -> str:
        """Why nothing is asked of the host after `error`, in one clause."""
        how = "limits requests" if isinstance(error, RateLimited) else "is down"
        return f"{self.name} {how}: {error.what.removeprefix(self.name).lstrip(' :')}"


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
