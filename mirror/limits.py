"""The limits of each host: parallel requests, request rate, pauses, and whether the host is down.

The HTTP session pauses a host that responds with 429. No permit is granted for a paused host.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

from mirror.errors import MirrorError, RateLimited
from mirror.util.bandwidth import Bandwidth, HostThrottles
from mirror.util.host_use import HostUsage, HostUseRecorder, Quota
from mirror.util.retry_policy import Clock, SystemClock
from mirror.util.structs import Struct, field

PROBE_EVERY = 60.0  # seconds between two probes of a host that is down
_SHORTEST_RATE_WAIT = 1.0  # seconds; a shorter wait because of a rate limit is not reported


class _Outage(Struct):
    """An outage of a host: the error that caused it, and the time at which the next request is sent as a probe."""

    error: MirrorError
    probe_at: float

    def is_due(self, now: float) -> bool:
        """Return whether a probe may be sent now. If so, schedule the next probe."""
        due = now >= self.probe_at
        if due:
            self.probe_at = now + PROBE_EVERY
        return due


class HostWait(Struct, frozen=True):
    """A host to which requests are delayed. seconds: the time until the next request. reason: a phrase."""

    host: str
    reason: str
    seconds: float


class Availability:
    """Tracks whether one host is down or one of its quotas is used up. Thread-safe. clock: measures time in seconds."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._clock = clock
        self._guard = threading.Lock()
        self._down: _Outage | None = None
        self._exhausted: dict[str, _Outage] = {}  # by kind of request

    def mark_down(self, error: MirrorError) -> bool:
        """Mark the host as down because `error` persisted through all retries of a request.

        Return True if the host was not marked as down before."""
        with self._guard:
            first = self._down is None
            if self._down is None:  # a later failure does not postpone the probe
                self._down = _Outage(error, self._probe_at(error))
            self._down.error = error
        return first

    def mark_quota_used_up(self, kind: str, error: MirrorError) -> None:
        """Stop sending requests of `kind`, such as `GET manifest`, because their quota is used up."""
        with self._guard:
            self._exhausted.setdefault(kind, _Outage(error, self._probe_at(error)))

    def _probe_at(self, error: MirrorError) -> float:
        """Return the time of the next probe after `error`."""
        return self._clock.now() + max(PROBE_EVERY, error.retry_after or 0.0)

    def record_response(self, kind: str, status: int, *, probe: bool) -> None:
        """Record the response to a request of `kind`. probe: the return value of `check_available` for this request.

        Any response ends the outage of a host that did not respond. If a host limits requests (429), its outage ends
        only when a probe gets a response with a different status."""
        if self._down is None and not self._exhausted:
            return
        with self._guard:
            passed = probe and status != 429
            if self._down is not None and (passed or not isinstance(self._down.error, RateLimited)):
                self._down = None
            if passed:
                self._exhausted.pop(kind, None)

    @property
    def down(self) -> bool:
        """Whether the host is down: it does not respond or limits requests, so only probes are sent to it."""
        return self._down is not None

    def check_available(self, kind: str = "") -> bool:
        """Raise an error if a request of `kind` must not be sent now. Return whether the request is a probe.

        During an outage, one request per minute is sent as a probe, or fewer if the host asked for a longer wait."""
        if self._down is None and kind not in self._exhausted:
            return False
        with self._guard:
            outage = self._down or self._exhausted.get(kind)
            if outage is None:
                return False
            if outage.is_due(self._clock.now()):
                return True
            error = outage.error
        raise error.with_text(self.describe_outage(error))

    def _outage_wait(self) -> HostWait | None:
        """Return how long requests wait for the next probe, and why, or None if there is no outage."""
        with self._guard:
            outage = self._down or next(iter(self._exhausted.values()), None)
            if outage is None:
                return None
            error, left = outage.error, outage.probe_at - self._clock.now()
        reason = "rate limited" if isinstance(error, RateLimited) else "down"
        return HostWait(self.name, reason, max(0.0, left))

    def describe_outage(self, error: MirrorError) -> str:
        """Return a clause that says why no request is sent to the host. error: the error that caused the outage."""
        how = "limits requests" if isinstance(error, RateLimited) else "is down"
        return f"{self.name} {how}: {error.what.removeprefix(self.name).lstrip(' :')}"


class Rate(Struct, frozen=True):
    """A rate limit: at most `count` requests in `seconds` seconds."""

    count: int
    seconds: float


class _HostState(Struct):
    """The state of a host's limits: when its pause ends, when it may get the next request, and the request counts."""

    paused_until: float = 0.0
    pause_reason: str = ""
    next_free: float = 0.0  # when the rate allows the next request
    requests: Counter[str] = field(default_factory=Counter)


class HostLimits(Availability):
    """The limits of one host: its parallel requests, request rate, pauses and availability.

    Thread-safe. Methods return times as seconds on the same scale as `clock.now()`. The requests, responses and pauses
    of the host are recorded."""

    def __init__(
        self,
        name: str,
        parallel: int = 8,
        rate: Rate | None = None,
        clock: Clock | None = None,
        started: float | None = None,
        on_request: Callable[[], object] | None = None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """Create the limits of a host. started: the start of the run, as a value of `clock.now()`; by default, now.

        on_request: called on any thread after each request that was sent. bandwidth: the limits of blob transfers."""
        super().__init__(name, clock or SystemClock())
        self.throttles = None if bandwidth is None else HostThrottles(bandwidth, self._clock)
        self._on_request = on_request
        self.parallel = parallel
        self.rate = rate
        self._lock = threading.Lock()
        self._state = _HostState()
        self._use = HostUseRecorder()
        self._started = self._clock.now() if started is None else started
        self.on_hold: Callable[[float], None] = _ignore_hold  # called with the time until which no request may start

    def ready_at(self) -> float:
        """Return the earliest time at which the next request may start. It may be in the past."""
        with self._lock:
            return max(self._state.paused_until, self._state.next_free)

    def count_request(self, kind: str) -> None:
        """Count one request of `kind`, such as `HEAD manifest`, that was sent."""
        with self._lock:
            self._state.requests[kind] += 1
            self._use.add_request(self._clock.now() - self._started)
        if self._on_request is not None:
            self._on_request()

    def count_response(self, status: int, quota: Quota | None) -> None:
        """Count one response with the HTTP status `status`. quota: the quota that the response states, if any."""
        with self._lock:
            self._use.add_response(status, quota)

    def reserve_start(self) -> float:
        """Reserve a time slot for one request within the rate limit. Return the seconds to wait before sending it."""
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

    def wait(self) -> HostWait | None:
        """Return why and how long requests to the host are delayed, or None if the next request may be sent now.

        Requests are delayed if the host is paused or down, if one of its quotas is used up, or if its rate limit
        delays the next request by more than a second."""
        with self._lock:
            now, state = self._clock.now(), self._state
            if state.paused_until > now:
                return HostWait(self.name, state.pause_reason, state.paused_until - now)
            next_free = state.next_free - now
        if next_free > _SHORTEST_RATE_WAIT:
            return HostWait(self.name, "limited by `rate`", next_free)
        return self._outage_wait()

    def pause(self, seconds: float, reason: str = "paused") -> bool:
        """Pause the host: start no request to it for `seconds`. reason: a phrase for the progress display.

        Return True if the host was not paused before, so that the caller logs each pause once."""
        with self._lock:
            until = self._clock.now() + seconds
            longer = until > self._state.paused_until
            if longer:
                fresh = self._state.paused_until <= self._clock.now()
                self._state.paused_until = until
                self._state.pause_reason = reason
                self._use.add_pause(until - seconds - self._started, seconds)
        if longer:
            self.on_hold(until)
        return longer and fresh

    def requests(self) -> dict[str, int]:
        """Return the number of requests that were sent, by kind, such as `HEAD manifest`."""
        with self._lock:
            return dict(sorted(self._state.requests.items()))

    def use(self) -> HostUsage:
        """Return the use of the host so far: requests over time, response statuses, pauses and quota."""
        with self._lock:
            return self._use.result()


def _ignore_hold(until: float) -> None:
    """Do nothing: the default of HostLimits.on_hold."""


class Limits:
    """The limits of all hosts of a run. The limits of a host are created when they are first requested. Thread-safe.

    on_request: called on any thread after each request that was sent."""

    def __init__(
        self,
        clock: Clock | None = None,
        default_parallel: int = 8,
        on_request: Callable[[], object] | None = None,
    ) -> None:
        self.clock = clock or SystemClock()
        self._on_request = on_request
        self._started = self.clock.now()
        self._default = default_parallel
        self._lock = threading.Lock()
        self._hosts: dict[str, HostLimits] = {}
        self.retries = 0
        self.waited = 0.0  # seconds, summed over threads
        self.longest_wait = 0.0  # seconds
        self._queued = threading.local()
        self.retry_after: float | None = None  # seconds; the longest requested wait that was too long

    def configure(
        self, name: str, parallel: int, rate: Rate | None = None, bandwidth: Bandwidth | None = None
    ) -> HostLimits:
        """Set the limits of a host. Must be called before the host is used."""
        host = HostLimits(name, parallel, rate, self.clock, self._started, self._on_request, bandwidth)
        with self._lock:
            self._hosts[name] = host
        return host

    def host(self, name: str) -> HostLimits:
        """Return the limits of the host, with the default values if it was not configured."""
        found = self._hosts.get(name)
        if found is None:
            with self._lock:
                found = self._hosts.get(name)
                if found is None:
                    found = self._hosts[name] = HostLimits(
                        name, self._default, None, self.clock, self._started, self._on_request
                    )
        return found

    def hosts(self) -> list[HostLimits]:
        """Return the limits of all hosts, sorted by name."""
        with self._lock:
            return sorted(self._hosts.values(), key=lambda host: host.name)

    def waiting_hosts(self) -> list[HostWait]:
        """Return the hosts to which requests are delayed at present, sorted by name."""
        return [wait for host in self.hosts() if (wait := host.wait()) is not None]

    def count_retry(self, waited: float = 0.0) -> None:
        """Count a retry that was made after a wait of `waited` seconds."""
        with self._lock:
            self.retries += 1
            self.waited += waited
            self.longest_wait = max(self.longest_wait, waited)

    def add_limit_wait(self, seconds: float) -> None:
        """Add `seconds` to the time that this thread has waited because of pauses and rate limits of hosts."""
        self._queued.seconds = self.limit_wait_seconds() + seconds

    def limit_wait_seconds(self) -> float:
        """Return how many seconds this thread has waited because of pauses and rate limits.

        Retry budgets do not include these waits."""
        seconds: float = getattr(self._queued, "seconds", 0.0)
        return seconds

    def record_refused_wait(self, seconds: float) -> None:
        """Record that a server asked for a wait of `seconds`, which is longer than the retry policy allows."""
        with self._lock:
            self.retry_after = max(seconds, self.retry_after or 0.0)
