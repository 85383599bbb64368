"""Decides when `mirror sync --every` copies each mirror of a configuration. The caller passes the current time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

JITTER = 0.1  # the maximum delay of a cycle, as a fraction of the shortest interval
MAX_JITTER = 60.0  # seconds


class Schedule:
    """Determines when the next cycle begins, and which mirrors it copies.

    All mirrors are due at `now`. From then on, a mirror is due at multiples of its interval, so mirrors with related
    intervals share cycles. If a mirror becomes due more than once during a long cycle, the next cycle copies it once.
    To spread the load of several processes, each cycle except the first is delayed by a random time: up to a tenth of
    the shortest interval, but at most MAX_JITTER seconds.

    intervals: the interval of each mirror, in seconds, in the order of the configuration. now: the current time in
    seconds; all methods use this scale. random_part: returns a number from 0 to 1."""

    def __init__(
        self, intervals: Sequence[float], now: float, random_part: Callable[[], float] = random.random
    ) -> None:
        self._intervals = tuple(intervals)
        self._due = dict.fromkeys(self._intervals, now)  # by interval
        self._random_part = random_part
        self.next_start = now

    def take_due(self, now: float) -> frozenset[int]:
        """Return the numbers of the mirrors that are due, and schedule the next cycle. Call this when a cycle begins.

        Mirrors are numbered from 0."""
        due = {interval for interval, at in self._due.items() if at <= now}
        for interval in due:
            missed = (now - self._due[interval]) // interval
            self._due[interval] += interval * (missed + 1)
        longest_delay = min(JITTER * min(self._intervals), MAX_JITTER)
        self.next_start = min(self._due.values()) + longest_delay * self._random_part()
        return frozenset(number for number, interval in enumerate(self._intervals) if interval in due)
