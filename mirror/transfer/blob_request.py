"""A request to copy one blob to one repository, and the result of the copy."""

from __future__ import annotations

import time
from enum import Enum

from mirror.oci.descriptor import Descriptor
from mirror.oci.reference import Repository
from mirror.store import Source, Target
from mirror.util.structs import Struct, field


class BlobSource(Struct, frozen=True):
    """A repository from which a blob can be read."""

    store: Source
    repository: str

    def __str__(self) -> str:
        return str(Repository(self.store.host, self.repository))


class BlobOutcome(Enum):
    """The ways in which a copy can make a blob available in a repository."""

    COPIED = "copied"
    MOUNTED = "mounted"
    EXISTS = "exists"


class BlobRequest(Struct, frozen=True):
    """A request to copy a blob or manifest to a repository of a target.

    source: the source that is tried first.
    image: the image that requested it first, for the log.
    may_have: the repository may have the blob already, so a lookup is worth a request.
    lookup_first: look the blob up in the repository before anything else is tried.
    is_root: whether `blob` is the root manifest of the image."""

    blob: Descriptor
    target: Target
    repository: Repository
    source: BlobSource
    image: str
    may_have: bool
    lookup_first: bool = False
    is_root: bool = False


class BlobResult(Struct, eq=False):
    """The cost and the outcome of a copy. The counters increase while the copy runs.

    outcome: None if the copy failed.
    mounted_from: the path of the repository that the blob was mounted from.
    bytes_read, bytes_sent, attempts: the totals, including failed attempts. seconds: the duration of the copy.
    size_verified: whether the bytes or the target confirmed the size in the descriptor.
    counted: whether an image has counted the result already (`take_outcome`)."""

    outcome: BlobOutcome | None = None
    mounted_from: str | None = None
    bytes_read: int = 0
    bytes_sent: int = 0
    attempts: int = 0
    seconds: float = 0.0
    size_verified: bool = True
    counted: bool = False
    started: float = field(default_factory=time.monotonic)

    def end(
        self, outcome: BlobOutcome | None = None, mounted_from: str | None = None, *, size_verified: bool = True
    ) -> BlobResult:
        """Set the outcome and the duration, and return the result."""
        self.outcome, self.mounted_from, self.size_verified = outcome, mounted_from, size_verified
        self.seconds = time.monotonic() - self.started
        return self

    def take_outcome(self) -> BlobOutcome | None:
        """Return the outcome on the first call, and None on later calls, so that only one image counts the copy."""
        counted, self.counted = self.counted, True
        return None if counted else self.outcome
