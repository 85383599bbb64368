"""Runs the reads of segments of large blobs as calls, so that they count for the limits of their hosts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from mirror.errors import MirrorError
from mirror.oci.descriptor import Descriptor
from mirror.store import BlobReader
from mirror.transfer.calls import Calls
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.range_reader import RangeOpener, RangeReader, RangeRules
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE, Clock, SystemClock

DEFAULT_RULES = RangeRules()


class RangeThreads:
    """Lets large blobs be read over several connections. Implements `SegmentThreads`. Thread-safe."""

    def __init__(self, calls: Calls, rules: RangeRules | None = None, clock: Clock | None = None) -> None:
        self._calls = calls
        self._rules = rules or DEFAULT_RULES
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._free = self._rules.total  # segments for which there is still memory
        self._without_ranges: set[str] = set()  # hosts from which reading a range failed

    def wrap(self, reader: BlobReader, blob: Descriptor, position: int, host: str, work: Work) -> BlobReader:
        """Return a reader for the rest of a blob that may use more connections than `reader`, or `reader` itself.

        reader: delivers the bytes of the blob from offset `position`. host: the host from which it reads."""
        left = 0 if blob.size is None else blob.size - position
        if left < self._rules.smallest or not isinstance(reader, RangeOpener) or host in self._without_ranges:
            return reader
        return RangeReader(
            reader,
            reader.open_range,
            self,
            work,
            host=host,
            position=position,
            end=position + left,
            rules=self._rules,
            clock=self._clock,
        )

    def take(self) -> bool:
        """Reserve memory for one segment. Return False if there is none left."""
        with self._lock:
            is_free = self._free > 0
            self._free -= is_free
        return is_free

    def give_back(self) -> None:
        """Give back the memory of one segment."""
        with self._lock:
            self._free += 1

    def start(self, host: str, run: Callable[[Work], None]) -> None:
        """Run `run` on another thread as soon as there are permits for a download from `host`. Never after a stop."""
        self._calls.post(lambda: self._calls.tasks.detach(self._run(host, run)))

    async def _run(self, host: str, run: Callable[[Work], None]) -> None:
        """Run `run` as a call."""
        with suppress(MirrorError):  # after a stop; `run` itself raises none
            await self._calls.call(run, needs=(host_permit(host), DOWNLOADS), policy=ONCE)

    def reject_ranges(self, host: str) -> None:
        """Record that reading a range from `host` failed, so that its blobs are read over one connection."""
        with self._lock:
            self._without_ranges.add(host)
