"""What is ordered of the deliveries, and what came of it."""

from __future__ import annotations

import time
from enum import Enum

from mirror.oci.descriptor import Descriptor
from mirror.oci.reference import Repository
from mirror.store import Target
from mirror.transfer.downloads import BlobSource
from mirror.transfer.uploads import BlobUpload
from mirror.util.structs import Struct, field


class BlobOutcome(Enum):
    """How a blob came to be where it is wanted."""

    COPIED = "copied"
    MOUNTED = "mounted"
    EXISTS = "exists"


class BlobRequest(Struct, frozen=True):
    """A blob that is wanted in a repository of a target, and where it may be read from.

    may_have: the repository may hold it already, so that asking is worth a request; certain: ask before all else;
    is_root: it is the manifest that the image's tag names."""

    blob: Descriptor
    target: Target
    repository: Repository
    source: BlobSource
    image: str  # for the log: the image that asked first
    may_have: bool
    lookup_first: bool = False
    is_root: bool = False


class BlobResult(Struct, eq=False):
    """What it took. from_: the repository it was mounted from; bytes of all attempts; seconds of wall time; sized:
    the target, or the bytes, have shown the size that the descriptor gives."""

    outcome: BlobOutcome
    from_: str | None = None
    bytes_read: int = 0
    bytes_sent: int = 0
    attempts: int = 0
    seconds: float = 0.0
    sized: bool = True
    claimed: bool = False

    def claim(self) -> BlobOutcome | None:
        """The outcome, for the first who asks; None for those who only joined."""
        first, self.claimed = not self.claimed, True
        return self.outcome if first else None


class BlobCost(Struct, frozen=True):
    """What a delivery took that failed: as in Delivered."""

    bytes_read: int = 0
    bytes_sent: int = 0
    attempts: int = 1
    seconds: float = 0.0


class BlobEffort(Struct):
    """The counters of one delivery; written by its calls, read when it ends. asked: whether the target was asked for
    the blob and said that it does not have it. unread: why its bytes could not be fetched, if that was the trouble;
    joined: they were read for another delivery, and not from where this one would read them."""

    started: float = field(default_factory=time.monotonic)
    read: int = 0
    attempts: int = 0
    asked: bool = False
    sent: int = 0
    unread: BaseException | None = None
    joined: bool = False
    sending: BlobUpload | None = None

    def result(self, outcome: BlobOutcome, from_: str | None = None, *, sized: bool = True) -> BlobResult:
        seconds = time.monotonic() - self.started
        return BlobResult(outcome, from_, self.read, self.sent, max(1, self.attempts), seconds, sized)

    def cost(self) -> BlobCost:
        return BlobCost(self.read, self.sent, max(1, self.attempts), time.monotonic() - self.started)
