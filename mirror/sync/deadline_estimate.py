"""Estimates from the rate of earlier uploads whether an image can be copied before the deadline of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from mirror.errors import DEADLINE, Cancelled
from mirror.oci.descriptor import Descriptor
from mirror.output.report.units import format_duration, format_size
from mirror.selection.locations import is_registry
from mirror.sync.plan_model import PlanEntry
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult
from mirror.util.structs import Struct, field

SMALLEST_BLOB = 1 << 20  # bytes; how long smaller blobs take depends more on the latency than on the rate
# A rate is used only if it was measured over at least this many bytes and seconds.
MIN_BYTES = 8 << 20
MIN_SECONDS = 1.0

TimeLeft: TypeAlias = Callable[[], float | None]
"""Returns the seconds until the deadline of the run, or None if the run has no deadline."""


class _Uploads(Struct):
    """The uploads to one host so far. seconds: the time during which at least one of them was running.

    intervals: the start and the end of each period in which uploads were running, in seconds, in ascending order."""

    bytes: int = 0
    intervals: list[tuple[float, float]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, start: float, end: float, count: int) -> None:
        """Add an upload of `count` bytes. Its end must not be before the end of an upload that was added earlier."""
        self.bytes += count
        while self.intervals and self.intervals[-1][1] >= start:
            last_start, last_end = self.intervals.pop()
            self.seconds -= last_end - last_start
            start = min(start, last_start)
        self.intervals.append((start, end))
        self.seconds += end - start


class DeadlineEstimate:
    """Decides whether there is enough time to copy an image. Must be used on the event loop.

    left_out: whether an image was not copied because there was not enough time."""

    def __init__(self, locations: BlobLocations, time_left: TimeLeft) -> None:
        self._locations = locations
        self._time_left = time_left
        self._uploads: dict[str, _Uploads] = {}  # by target host
        self.left_out = False

    def record(self, request: BlobRequest, result: BlobResult) -> None:
        """Record how long a blob took, if it was uploaded."""
        if result.outcome is BlobOutcome.COPIED and result.bytes_sent >= SMALLEST_BLOB:
            uploads = self._uploads.setdefault(request.repository.host, _Uploads())
            uploads.add(result.started, result.started + result.seconds, result.bytes_sent)

    def check(self, plan_entry: PlanEntry, blobs: Iterable[Descriptor]) -> None:
        """Raise Cancelled if these blobs of an image cannot be uploaded in time, even if nothing else is uploaded.

        Blobs that the target has, or that can be mounted, need no time. Without enough earlier uploads to the host,
        and for targets on disk, nothing is raised."""
        left, host = self._time_left(), plan_entry.target.repository.host
        uploads = self._uploads.get(host)
        if left is None or uploads is None or not is_registry(host):
            return
        if uploads.bytes < MIN_BYTES or uploads.seconds < MIN_SECONDS:
            return
        missing = {blob.digest: blob.size or 0 for blob in blobs if not self._may_exist(plan_entry, blob)}
        size, rate = sum(missing.values()), uploads.bytes / uploads.seconds
        if size / rate > left:
            self.left_out = True
            raise Cancelled(
                f"{plan_entry.name}: {format_size(size)} at {format_size(round(rate))}/s would take "
                f"{format_duration(size / rate)}, longer than the {format_duration(max(left, 0.0))} until the deadline",
                code=DEADLINE,
            )

    def _may_exist(self, plan_entry: PlanEntry, blob: Descriptor) -> bool:
        """Return whether the target is known to have the blob, or to have had it, in this or another repository."""
        repository, locations = plan_entry.target.repository, self._locations
        return (
            locations.has_blob(repository, blob.digest)
            or locations.is_expected(repository, blob.digest)
            or locations.find_holder(repository, blob.digest) is not None
        )
