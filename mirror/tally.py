"""What one image cost, and where that goes."""

from __future__ import annotations

import time
from typing import Protocol

from mirror.errors import MirrorError
from mirror.findings import Entry, Finding
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.structs import Struct, field
from mirror.transfer.orders import Cost, Delivered, Outcome


class Tally(Struct):
    """What one image cost, in blobs and bytes of blobs. interrupted: called off by a signal, or since another blob of
    the image failed. started: seconds of the monotonic clock."""

    copied: int = 0
    mounted: int = 0
    exists: int = 0
    failed: int = 0
    interrupted: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    bytes_mounted: int = 0
    attempts: int = 1
    started: float = field(default_factory=time.monotonic)
    _sent: set[Digest] = field(default_factory=set)  # the blobs that `copied` and `mounted` count

    def push_again(self) -> None:
        """The image is about to be pushed a second time: count what becomes of its blobs then, each blob once."""
        self.exists = self.failed = self.interrupted = 0

    def add_interrupted(self, blob: Descriptor) -> None:
        """Count a blob that was called off."""
        self.interrupted += blob.digest not in self._sent

    def add_failed(self, blob: Descriptor, cost: Cost) -> None:
        """Count a delivery that failed, and what it took."""
        self.failed += blob.digest not in self._sent
        self.bytes_read += cost.bytes_read
        self.bytes_sent += cost.bytes_sent
        self.attempts = max(self.attempts, cost.attempts)

    def add(self, blob: Descriptor, delivered: Delivered) -> None:
        """Count a delivery; one that several images joined counts for the first that says so."""
        outcome = delivered.claim()
        if outcome is None:
            return
        sent_before = blob.digest in self._sent
        if outcome is Outcome.EXISTS:
            self.exists += not sent_before
            return
        self.bytes_read += delivered.bytes_read
        self.bytes_sent += delivered.bytes_sent
        self.attempts = max(self.attempts, delivered.attempts)
        self._sent.add(blob.digest)
        if outcome is Outcome.MOUNTED:
            self.mounted += not sent_before
            self.bytes_mounted += blob.size or 0
        else:
            self.copied += not sent_before


class Results(Protocol):
    """Takes the result of each image, once. Calls come from any thread and must not block."""

    def up_to_date(self, finding: Finding, digest: Digest) -> None: ...
    def copied(self, finding: Finding, digest: Digest, tally: Tally) -> None: ...
    def failed(self, finding: Finding, error: MirrorError, tally: Tally) -> None: ...
    def skipped(self, finding: Finding, reason: str) -> None: ...
    def listing_failed(self, entry: Entry, error: MirrorError) -> None: ...
    def selected(self, entry: Entry, count: int) -> None: ...
    def crashed(self, finding: Finding, error: BaseException) -> None: ...
    def trouble(self, error: MirrorError) -> None: ...
