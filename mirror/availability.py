"""Whether a host may be asked: not while it is silent, limits requests (429), or has a quota that is used up."""

from __future__ import annotations

import threading

from mirror.backoff import Clock
from mirror.errors import MirrorError, RateLimited
from mirror.structs import Struct

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
