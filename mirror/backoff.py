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
from mirror.structs import Struct


class Clock(Protocol):
    """Monotonic time in seconds. Tests put a fake one here."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


class Policy(Struct, frozen=True):
    """attempts: how often in all; budget: seconds from the first attempt after which no further one begins;
    longest_asked: the longest `Retry-After`, in seconds, that is waited for."""

    attempts: int = 5
    base: float = 0.5  # seconds
    cap: float = 20.0  # seconds
    budget: float = 90.0  # seconds
    longest_asked: float = 120.0  # seconds
    most_asked: int = 60  # attempts, where the server says each time how long to wait
    asked_budget: float = 900.0  # seconds from the first attempt, likewise

    def wait_before_next(
        self,
        attempt: int,
        error: MirrorError,
        elapsed: float,
        draw: Callable[[], float] = random.random,
    ) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) failed with `error`; None: give up.

        elapsed: seconds since the first attempt began. A wait that the server asked for is honoured exactly; it is
        not ours to shorten, and says that the server is there: it has a larger count and budget of its own."""
        if not error.retryable:
            return None
        if error.retry_after is not None and self.attempts > 1:
            asked = error.retry_after if error.retry_after <= self.longest_asked else None
            patient = attempt < self.most_asked and elapsed + error.retry_after < self.asked_budget
            return asked if patient else None
        if attempt >= self.attempts:
            return None
        wait = draw() * min(self.cap, self.base * 2.0 ** (attempt - 1))
        return wait if elapsed + wait < self.budget else None


ONCE = Policy(attempts=1)
