"""What one image cost."""

from __future__ import annotations

import time

from mirror.structs import Struct, field
from mirror.transfer.orders import Delivered, Outcome


class Tally(Struct):
    """What one image cost. Bytes are of blobs; seconds of wall time."""

    copied: int = 0
    mounted: int = 0
    exists: int = 0
    failed: int = 0
    bytes_read: int = 0
    bytes_sent: int = 0
    bytes_mounted: int = 0
    attempts: int = 1
    started: float = field(default_factory=time.monotonic)

    def add(self, size: int, delivered: Delivered) -> None:
        """Count a delivery; one that several images joined counts for the first that says so."""
        outcome = delivered.claim()
        if outcome is None:
            return
        if outcome is Outcome.EXISTS:
            self.exists += 1
            return
        self.bytes_read += delivered.bytes_read
        self.bytes_sent += delivered.bytes_sent
        self.attempts = max(self.attempts, delivered.attempts)
        if outcome is Outcome.MOUNTED:
            self.mounted += 1
            self.bytes_mounted += size
        else:
            self.copied += 1
