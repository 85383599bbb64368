"""When to try again: an immutable policy, full jitter, a count and a time budget.

Full jitter: the wait before attempt n+1 is uniform between 0 and min(cap, base * 2**(n-1)), which spreads
clients that failed together (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from mirror.errors import MirrorError


class Clock(Protocol):
    """Monotonic time in seconds. Tests put a fake one here."""

    def now(self) -> float: ...


class SystemClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Policy:
    """attempts: how often in all; budget: seconds from the first attempt after which no further one begins;
    longest_asked: the longest `Retry-After`, in seconds, that is waited for."""

    attempts: int = 5
    base: float = 0.5  # seconds
    cap: float = 20.0  # seconds
    budget: float = 90.0  # seconds
    longest_asked: float = 120.0  # seconds

    def wait_before_next(
        self,
        attempt: int,
        error: MirrorError,
        elapsed: float,
        draw: Callable[[], float] = random.random,
    ) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1) failed with `error`; None: give up.

        elapsed: seconds since the first attempt began. A wait that the server asked for is honoured exactly
        and costs nothing of the time budget, since it is not ours to shorten."""
        if not error.retryable or attempt >= self.attempts:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.longest_asked else None
        wait = draw() * min(self.cap, self.base * 2.0 ** (attempt - 1))
        return wait if elapsed + wait < self.budget else None


ONCE = Policy(attempts=1)
