"""Records the use of a host by a run: requests over time, response statuses, pauses, and the remaining quota."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mirror.util.structs import Count, Seconds, Struct, field

MAX_INTERVALS = 120  # the maximum number of intervals in which requests are counted
MAX_PAUSES = 100  # the maximum number of pauses that are recorded; later pauses extend the last one


class Pause(Struct, frozen=True):
    """A period in which no request to a host was started, because the host asked for a pause.

    start: the time since the start of the run. seconds: the length of the period. Both are in seconds."""

    start: Seconds
    seconds: Seconds


class Quota(Struct, frozen=True):
    """The quota of a host for pulls: how many pulls are left, and the limit if it is known."""

    remaining: Count
    limit: Count | None = None


class HostUsage(Struct, frozen=True):
    """The use of one host by a run: requests over time, response statuses, pauses, and the remaining quota.

    statuses: the number of responses by HTTP status. requests: the number of requests in each interval since the start
    of the run. interval: the length of an interval in seconds."""

    statuses: dict[str, Count] = field(default_factory=dict)
    interval: Seconds = 1.0
    requests: list[Count] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    quota: Quota | None = None


class HostUseRecorder:
    """Collects the values of a HostUsage in bounded memory. Times are in seconds since the start of the run.

    It is not thread-safe. When there are too many intervals, pairs of them are merged."""

    def __init__(self) -> None:
        self._statuses: Counter[str] = Counter()
        self._interval = 1.0
        self._requests: list[int] = []
        self._pauses: list[Pause] = []
        self._quota: Quota | None = None

    def add_request(self, at: float) -> None:
        """Count one request that was sent at the time `at`."""
        while at >= self._interval * MAX_INTERVALS:
            self._requests = merge_pairs(self._requests)
            self._interval *= 2
        position = max(0, int(at / self._interval))
        self._requests += [0] * (position + 1 - len(self._requests))
        self._requests[position] += 1

    def add_response(self, status: int, quota: Quota | None) -> None:
        """Count one response with the HTTP status `status`. quota: the quota that the response states, if any."""
        self._statuses[str(status)] += 1
        self._quota = quota or self._quota

    def add_pause(self, start: float, seconds: float) -> None:
        """Record a pause. If it overlaps the last pause, or if there are too many pauses, extend the last pause."""
        last = self._pauses[-1] if self._pauses else None
        if last is not None and (start <= last.start + last.seconds or len(self._pauses) == MAX_PAUSES):
            self._pauses[-1] = Pause(last.start, max(last.seconds, start + seconds - last.start))
        else:
            self._pauses.append(Pause(start, seconds))

    def result(self) -> HostUsage:
        """Return the use of the host so far. Times are rounded to milliseconds."""
        return HostUsage(
            dict(sorted(self._statuses.items())),
            self._interval,
            list(self._requests),
            [Pause(round(one.start, 3), round(one.seconds, 3)) for one in self._pauses],
            self._quota,
        )


def merge_pairs(counts: Sequence[int]) -> list[int]:
    """Return the sum of each pair of consecutive counts. If the number of counts is odd, the last one is kept as is."""
    return [sum(counts[position : position + 2]) for position in range(0, len(counts), 2)]
