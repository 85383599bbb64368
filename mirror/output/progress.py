"""The progress of a run: its phase, the images and bytes so far, and the blobs that are being copied.

This module only holds the values. `progress_display` shows them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from mirror.util.structs import Struct

# listing: no reference has been selected yet. planning: some mirrors are not planned yet; copies may have begun.
Phase = Literal["listing", "planning", "copying", "verifying", "deleting", "finishing", "stopping"]
# read: a download that uploads to several targets share. transform: the conversion of a layer before it is copied.
BlobAction = Literal["copy", "hash", "read", "transform"]

MOST_BLOBS = 5  # blobs in a snapshot
MOST_HOSTS = 3  # hosts in a line or on a display
_COUNTED = frozenset({"copy", "hash"})  # the actions whose bytes are part of the totals
_ENOUGH_IMAGES = 10  # images that must have been read before the bytes of the others are estimated


class WaitingHost(Protocol):
    """A host to which requests are delayed. seconds: the remaining delay. reason: a phrase, such as `rate limited`."""

    @property
    def host(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def seconds(self) -> float: ...


class BlobProgress:
    """The progress of one blob. One thread at a time updates it; other threads may read it at any time.

    place: the repository, image or file that the blob is copied to or read from; empty if the display must not list it.
    size: in bytes, or None if it is not known.
    position: the number of bytes in the current attempt, including those that an earlier attempt left in the session.
    moved: the number of bytes in all attempts. is_running: whether an attempt has begun.
    on_bytes: called whenever bytes are added."""

    __slots__ = ("_on_bytes", "action", "digest", "is_running", "moved", "place", "position", "size")

    def __init__(
        self,
        place: str = "",
        digest: str = "",
        size: int | None = None,
        action: BlobAction = "copy",
        on_bytes: Callable[[], object] | None = None,
    ) -> None:
        self.place = place
        self.digest = digest
        self.size = size
        self.action = action
        self.position = 0
        self.moved = 0
        self.is_running = False
        self._on_bytes = on_bytes

    def start_at(self, position: int) -> None:
        """Begin to send or read the blob at the byte `position`."""
        self.position = position
        self.is_running = True

    def add(self, count: int) -> None:
        """Add `count` to the number of bytes sent or read. This method can serve as the `progress` of a `Work`."""
        self.position += count
        self.moved += count
        if self._on_bytes is not None:
            self._on_bytes()


class BlobSnapshot(Struct, frozen=True):
    """The values of a BlobProgress at one moment. The fields are those of BlobProgress."""

    place: str
    digest: str
    size: int | None
    position: int
    action: BlobAction


class Snapshot(Struct, frozen=True):
    """The progress of a run at one moment.

    images: the number of images that were selected so far, once for each target; in the phase `deleting`, the number of
    tags and attachments to delete.
    done: the number of images that have a result. failed: how many of these failed.
    moved: the number of bytes sent or hashed, including failed attempts. complete: the number of bytes of `expected`
    that are in place.
    expected: the number of bytes to copy or to hash in total, without blobs of unknown size. It is 0 as long as the
    total is not known. is_estimate: whether it contains an estimate for images that have not been read yet.
    seconds: the time since the start of the run.
    blobs: the largest blobs in progress. more_blobs: the number of other blobs in progress.
    hosts: the hosts to which requests are delayed."""

    phase: Phase
    images: int
    done: int
    failed: int
    moved: int
    complete: int
    expected: int
    is_estimate: bool
    seconds: float
    blobs: tuple[BlobSnapshot, ...] = ()
    more_blobs: int = 0
    hosts: tuple[WaitingHost, ...] = ()


class Progress:
    """The progress of a run. Thread-safe.

    on_phase: a function that is called with each new phase."""

    def __init__(
        self,
        phase: Phase = "listing",
        *,
        now: Callable[[], float] = time.monotonic,
        work: Phase = "copying",
        on_bytes: Callable[[], object] | None = None,
    ) -> None:
        """Start to measure the progress. phase: the first phase. work: the phase that follows planning.

        now: returns a time in seconds. on_bytes: called on any thread when bytes of a blob were copied or hashed."""
        self._now = now
        self._on_bytes = on_bytes
        self._begin = now()
        self._lock = threading.Lock()
        self._phase: Phase = phase
        self._work_phase: Phase = work
        self._images = self._done = self._failed = 0
        self._started = 0  # images whose copy has begun
        self._active: set[str] = set()  # those of them that are being copied, by name
        self._written: set[str] = set()  # images that are counted as done, but have no result yet
        self._blobs: dict[BlobProgress, None] = {}
        self._moved = self._complete = 0  # bytes of blobs that are no longer in `_blobs`
        self._waiting_hosts: Callable[[], Sequence[WaitingHost]] = tuple
        self.on_phase: Callable[[Phase], None] = _ignore_phase

    # ---- phases and hosts

    @property
    def phase(self) -> Phase:
        """The current phase of the run."""
        return self._phase

    def set_phase(self, phase: Phase) -> None:
        """Begin a phase of the run. After `stopping`, no other phase begins."""
        with self._lock:
            if self._phase in (phase, "stopping"):
                return
            self._phase = phase
        self.on_phase(phase)

    def end_planning(self) -> None:
        """Begin the phase that follows planning."""
        self.set_phase(self._work_phase)

    def set_host_source(self, waiting_hosts: Callable[[], Sequence[WaitingHost]]) -> None:
        """Set the function that returns the hosts to which requests are delayed."""
        self._waiting_hosts = waiting_hosts

    # ---- images

    def add_images(self, images: int) -> None:
        """Add `images` to the number of selected images."""
        with self._lock:
            self._images += images
        if self._phase == "listing":
            self.set_phase("planning")

    def start_deleting(self, number: int) -> None:
        """Begin the phase `deleting`. number: how many tags and attachments are to be deleted; they count as images."""
        self.set_phase("deleting")
        self.add_images(number)

    def start_image(self, name: str) -> None:
        """Record that the copy of an image begins. name: its name on the target."""
        with self._lock:
            self._started += 1
            self._active.add(name)

    def end_image(self, name: str) -> None:
        """Count an image that was written to a bundle as done. Its result is known only when the bundle is complete."""
        with self._lock:
            self._done += 1
            self._active.discard(name)
            self._written.add(name)

    def count_image(self, name: str = "", *, failed: bool = False) -> None:
        """Record the result of an image, and count it as done. name: as for `start_image`."""
        with self._lock:
            self._done += name not in self._written
            self._failed += failed
            self._active.discard(name)
            self._written.discard(name)

    # ---- blobs

    def start_blob(
        self, place: str = "", digest: str = "", size: int | None = None, action: BlobAction = "copy"
    ) -> BlobProgress:
        """Add a blob that is about to be copied or hashed. The parameters are those of BlobProgress."""
        blob = BlobProgress(place, digest, size, action, self._on_bytes)
        with self._lock:
            self._blobs[blob] = None
        return blob

    def end_blob(self, blob: BlobProgress, *, complete: bool) -> None:
        """Remove a blob that is no longer in progress. complete: whether the whole blob was copied or hashed.

        If it is not complete, its size no longer counts as expected."""
        with self._lock:
            del self._blobs[blob]
            if blob.action in _COUNTED:
                self._moved += blob.moved
                self._complete += (blob.size or 0) if complete else 0

    @contextmanager
    def running_blob(
        self, place: str, digest: str, size: int | None = None, action: BlobAction = "copy"
    ) -> Iterator[BlobProgress]:
        """Return a context manager that yields a blob in progress, which ends when the `with` block exits.

        Unless the block raises an exception, the blob then counts as complete."""
        blob = self.start_blob(place, digest, size, action)
        blob.start_at(0)
        complete = False
        try:
            yield blob
            complete = True
        finally:
            self.end_blob(blob, complete=complete)

    def snapshot(self) -> Snapshot:
        """Return the current progress of the run."""
        hosts = tuple(self._waiting_hosts())
        with self._lock:
            blobs = list(self._blobs)
            images, done, failed = max(self._images, self._done), self._done, self._failed
            started, active = self._started, len(self._active)
            moved, complete, phase = self._moved, self._complete, self._phase
        counted = [blob for blob in blobs if blob.action in _COUNTED]
        moved += sum(blob.moved for blob in counted)
        expected = complete + sum(blob.size or 0 for blob in counted)
        complete += sum(min(blob.position, blob.size or 0) for blob in counted)
        unread = max(0, images - done - active) if phase == "copying" else 0
        if phase in ("listing", "planning") or (unread and started < _ENOUGH_IMAGES):
            expected = 0
        elif unread:
            expected += expected * unread // started
        shown = sorted((one for one in blobs if one.is_running and one.place), key=_size, reverse=True)
        return Snapshot(
            phase=phase,
            images=images,
            done=done,
            failed=failed,
            moved=moved,
            complete=complete,
            expected=expected,
            is_estimate=bool(unread),
            seconds=self._now() - self._begin,
            blobs=tuple(
                BlobSnapshot(one.place, one.digest, one.size, one.position, one.action) for one in shown[:MOST_BLOBS]
            ),
            more_blobs=max(0, len(shown) - MOST_BLOBS),
            hosts=hosts,
        )


def bytes_per_second(before: Snapshot, now: Snapshot) -> float:
    """Return the average bytes per second between two snapshots."""
    seconds = now.seconds - before.seconds
    return (now.moved - before.moved) / seconds if seconds > 0 else 0.0


def seconds_left(before: Snapshot, now: Snapshot) -> float | None:
    """Estimate the number of seconds until the end of the run, from the bytes or images since the snapshot `before`.

    Return None during the planning, when the totals are not known yet, and if nothing has progressed."""
    if now.phase not in ("copying", "verifying", "deleting"):
        return None
    estimates = []
    rate = bytes_per_second(before, now)
    if now.expected > now.complete and rate > 0:
        estimates.append((now.expected - now.complete) / rate)
    elif now.expected > now.complete:
        return None
    if now.done >= 5 and now.images > now.done and (now.done, now.moved) != (before.done, before.moved):
        estimates.append(now.seconds / now.done * (now.images - now.done))
    return max(estimates, default=None)


def _size(blob: BlobProgress) -> int:
    """Return the size of a blob, or its position if its size is not known."""
    return blob.size or blob.position


def _ignore_phase(phase: Phase) -> None:
    """Do nothing: the default of Progress.on_phase."""
