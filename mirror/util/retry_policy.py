"""When to try again: an immutable policy, full jitter, a count and a time budget.

Full jitter: the wait before attempt n+1 is uniform between 0 and min(cap, base * 2**(n-1)), which spreads
clients that failed together (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol

from mirror.errors import MirrorError
from mirror.util.structs import Struct


class Clock(Protocol):
    """Monotonic time in seconds. Tests put a fake one here."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class Policy(Struct, frozen=True):
    """attempts: how many in all. budget: seconds of waiting after which no further attempt begins; what counts as
    waiting is the caller's to measure. longest_asked: the longest `Retry-After`, in seconds, that is waited for."""

    attempts: int = 5
    base: float = 0.5  # seconds
    cap: float = 20.0  # seconds
    budget: float = 90.0  # seconds
    longest_asked: float = 120.0  # seconds

    def wait_before_next(
        self,
        attempt: int,
        error: MirrorError,
        waited: float,
        draw: Callable[[], float] = random.random,
    ) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) failed with `error`; None: make no further attempt.

        waited: seconds of waiting so far. A wait that the server asked for is kept: it lengthens the backoff and never
        shortens it (`Retry-After: 0`, a date in the past). It does not count against the time budget, since the number
        of attempts bounds it."""
        if not error.retryable or attempt >= self.attempts:
            return None
        wait = draw() * min(self.cap, self.base * 2.0 ** (attempt - 1))
        if error.retry_after is None:
            return wait if waited + wait < self.budget else None
        return max(wait, error.retry_after) if error.retry_after <= self.longest_asked else None


ONCE = Policy(attempts=1)
