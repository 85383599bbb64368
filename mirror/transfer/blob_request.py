"""A request to copy one blob to one repository, and the result of the copy."""

from __future__ import annotations

import time
from enum import Enum

from mirror.oci.descriptor import Descriptor
from mirror.oci.reference import Repository
from mirror.output.progress import BlobProgress
from mirror.store import Source, Target
from mirror.util.structs import Struct, field


class BlobSource(Struct, frozen=True):
    """A repository from which a blob can be read."""

    store: Source
    repository: str

    def __str__(self) -> str:
        return str(Repository(self.store.host, self.repository))


class BlobOutcome(Enum):
    """How a blob became available in the target repository: copied, mounted, or it already existed."""

    COPIED = "copied"
    MOUNTED = "mounted"
    EXISTS = "exists"


class BlobRequest(Struct, frozen=True):
    """A request to copy a blob or manifest to a repository of a target.

    source: the source that is tried first.
    image: the image that needs the blob, for log messages.
    may_exist: whether the repository may already have the blob, so that a lookup is worth a request.
    lookup_first: whether to look up the blob in the repository before anything else is tried.
    is_root: whether `blob` is the root manifest of the image."""

    blob: Descriptor
    target: Target
    repository: Repository
    source: BlobSource
    image: str
    may_exist: bool
    lookup_first: bool = False
    is_root: bool = False


class BlobResult(Struct, eq=False):
    """The cost and the outcome of a copy. The counters increase while the copy runs.

    outcome: None if the copy failed.
    mounted_from: the path of the repository from which the blob was mounted, or None if it was not mounted.
    bytes_read, bytes_sent, attempts: the totals, including failed attempts. seconds: the duration of the copy.
    size_verified: whether the bytes or the target confirmed the size in the descriptor.
    counted: whether the counters of an image already include this result (`take_outcome`).
    progress: the progress of the copy, for the progress display."""

    outcome: BlobOutcome | None = None
    mounted_from: str | None = None
    bytes_read: int = 0
    bytes_sent: int = 0
    attempts: int = 0
    seconds: float = 0.0
    size_verified: bool = True
    counted: bool = False
    started: float = field(default_factory=time.monotonic)
    progress: BlobProgress = field(default_factory=BlobProgress)

    def end(
        self, outcome: BlobOutcome | None = None, mounted_from: str | None = None, *, size_verified: bool = True
    ) -> BlobResult:
        """Set the outcome and the duration, and return this object."""
        self.outcome, self.mounted_from, self.size_verified = outcome, mounted_from, size_verified
        self.seconds = time.monotonic() - self.started
        return self

    def take_outcome(self) -> BlobOutcome | None:
        """Return the outcome on the first call, and None on later calls, so that only one image counts the copy."""
        counted, self.counted = self.counted, True
        return None if counted else self.outcome
