"""Limits how many bytes per second are read from and written to a registry, also depending on the time of day."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from mirror.util.files import Sleeper
from mirror.util.retry_policy import Clock
from mirror.util.structs import Struct

UNLIMITED = math.inf
_SLICE = 0.1  # seconds that the transfer of one slice takes; transfers of a host take turns slice by slice
_BURST = 0.1  # seconds; unused bandwidth from this time can still be used


class BandwidthWindow(Struct, frozen=True):
    """Bandwidth limits for a part of each day.

    begin, end: minutes after midnight, local time. A window whose end is before its beginning spans midnight.
    read, write: bytes per second. If one of them is None, the limit that applies outside of all windows is used."""

    begin: int
    end: int
    read: float | None = None
    write: float | None = None

    def contains(self, minute: int) -> bool:
        """Return whether the window includes this minute of the day."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


class Bandwidth(Struct, frozen=True):
    """The bandwidth limits of one registry, in bytes per second. The first window that includes the time applies."""

    read: float = UNLIMITED
    write: float = UNLIMITED
    schedule: tuple[BandwidthWindow, ...] = ()

    def read_limit(self, minute: int) -> float:
        """Return the limit for reading at this minute of the day, in bytes per second."""
        window = self._window(minute)
        return self.read if window is None or window.read is None else window.read

    def write_limit(self, minute: int) -> float:
        """Return the limit for writing at this minute of the day, in bytes per second."""
        window = self._window(minute)
        return self.write if window is None or window.write is None else window.write

    def _window(self, minute: int) -> BandwidthWindow | None:
        return next((one for one in self.schedule if one.contains(minute)), None)


def local_minute() -> int:
    """Return the current minute of the day, in local time."""
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min


class Throttle:
    """Limits the bytes per second in one direction. All transfers of a host share one throttle. Thread-safe.

    limit: returns the current limit in bytes per second; it may change while blobs are transferred."""

    def __init__(self, limit: Callable[[], float], clock: Clock) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = -math.inf  # when the bytes that were counted so far are within the limit

    def slice_size(self) -> int | None:
        """Return the maximum number of bytes to transfer between two calls of `wait`, or None if there is no limit."""
        limit = self._limit()
        return None if limit == UNLIMITED else max(1, int(limit * _SLICE))

    def wait(self, count: int, sleeper: Sleeper) -> None:
        """Count `count` bytes, and sleep until the bytes that were counted so far are within the limit.

        Raises Cancelled."""
        limit = self._limit()
        with self._lock:
            now = self._clock.now()
            if limit == UNLIMITED:
                self._free_at = now
            else:
                self._free_at = max(self._free_at, now - _BURST) + count / limit
            seconds = self._free_at - now
        if seconds > 0.0:
            sleeper.sleep(seconds)


class HostThrottles:
    """The throttles for reading from and writing to one registry. minute: returns the minute of the day, local time."""

    def __init__(self, bandwidth: Bandwidth, clock: Clock, minute: Callable[[], int] = local_minute) -> None:
        self.read = Throttle(lambda: bandwidth.read_limit(minute()), clock)
        self.write = Throttle(lambda: bandwidth.write_limit(minute()), clock)


def limit_reads(buffer: memoryview, throttle: Throttle) -> memoryview:
    """Return the part of `buffer` to read into before the next `Throttle.wait`."""
    size = throttle.slice_size()
    return buffer if size is None else buffer[:size]


def throttle_body(
    body: Iterable[bytes | memoryview], throttle: Throttle, sleeper: Sleeper
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of `body` in slices, each as soon as it may be sent.

    Raises Cancelled, and the errors of `body`."""
    for piece in body:
        view = memoryview(piece).cast("B")
        while view.nbytes:
            size = throttle.slice_size() or view.nbytes
            part, view = view[:size], view[size:]
            throttle.wait(part.nbytes, sleeper)
            yield part
