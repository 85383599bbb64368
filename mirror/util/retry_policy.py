"""The retry policy: attempts, backoff with full jitter, and a time budget.

Full jitter: the wait before attempt n+1 is uniform between 0 and min(cap, base * 2**(n-1)). It spreads clients that
failed at the same time (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol

from mirror.errors import MirrorError
from mirror.util.structs import Struct


class Clock(Protocol):
    """A monotonic clock that measures seconds. Tests use a fake clock."""

    def now(self) -> float:
        """Return the time in seconds."""
        ...


class SystemClock:
    """The system's monotonic clock."""

    def now(self) -> float:
        """Return the time in seconds."""
        return time.monotonic()


class Policy(Struct, frozen=True):
    """The limits for retries, and the backoff between attempts.

    attempts: the maximum number of attempts, including the first one.
    base, cap: the parameters of the backoff (full jitter).
    budget: the maximum sum of all waits, which the caller measures.
    max_retry_after: the longest `Retry-After` that is honored."""

    attempts: int = 5
    base: float = 0.5  # seconds
    cap: float = 20.0  # seconds
    budget: float = 90.0  # seconds
    max_retry_after: float = 120.0  # seconds

    def wait_before_next(
        self,
        attempt: int,
        error: MirrorError,
        waited: float,
        draw: Callable[[], float] = random.random,
    ) -> float | None:
        """Return the number of seconds to wait before the next attempt, or None if there should be no further attempt.

        attempt: the number of the attempt that failed with `error`, from 1. waited: the sum of all waits so far, in
        seconds. draw: returns a random number between 0 and 1. A `Retry-After` can lengthen the backoff, but never
        shortens it, even if its value is 0 or a date in the past. The budget does not limit waits for `Retry-After`,
        because the number of attempts limits them."""
        if not error.retryable or attempt >= self.attempts:
            return None
        wait = draw() * min(self.cap, self.base * 2.0 ** (attempt - 1))
        if error.retry_after is None:
            return wait if waited + wait < self.budget else None
        return max(wait, error.retry_after) if error.retry_after <= self.max_retry_after else None


ONCE = Policy(attempts=1)
