"""Records the result of copying each blob and manifest to each target repository."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from mirror.errors import Cancelled, MirrorError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.transfer.blob_request import BlobOutcome, BlobRequest, BlobResult

BlobCallback: TypeAlias = Callable[[BlobRequest, BlobResult, "MirrorError | None"], None]


class BlobRecorder:
    """Passes the result of each copy to a callback, once for each repository and digest. Thread-safe.

    The callback is called again for the same repository and digest only if a copy succeeds after a failed one, or if a
    blob that was reported to exist had to be copied after all."""

    def __init__(self, record: BlobCallback) -> None:
        """Create a recorder. record: the callback. Its arguments are the request, the result, and the error or None."""
        self._record = record
        self._lock = threading.Lock()
        self._outcomes: dict[tuple[Repository, Digest], BlobOutcome | None] = {}  # None if the copy failed
        self._failed: dict[tuple[Repository, Digest], BlobResult] = {}  # failures that no image has counted yet
        self._interrupted: dict[tuple[Repository, Digest], tuple[BlobRequest, Cancelled]] = {}

    def record_blob(self, request: BlobRequest, result: BlobResult, error: MirrorError | None = None) -> None:
        """Record the result of copying a blob. error: the error that made the copy fail, if it failed."""
        if not self._store_outcome(request, result.outcome, error, success_is_final=False):
            result.counted = True  # the report counts the first result
            return
        if error is not None:
            with self._lock:
                self._failed[request.repository, request.blob.digest] = result
        self._record(request, result, error)

    def record_manifest(self, request: BlobRequest, result: BlobResult, error: MirrorError | None = None) -> None:
        """Record the result of writing a manifest. error: the error that made the write fail, if it failed.

        This may be called several times for one manifest that has several references."""
        if self._store_outcome(request, result.outcome, error, success_is_final=True):
            self._record(request, result, error)

    def take_failed(self, request: BlobRequest) -> BlobResult:
        """Return the result of the failed copy for `request` on the first call, and an empty result on later calls.

        If several images need the blob, only the first caller adds the failed copy to the counters of its image."""
        with self._lock:
            return self._failed.pop((request.repository, request.blob.digest), None) or BlobResult()

    def _store_outcome(
        self, request: BlobRequest, outcome: BlobOutcome | None, error: MirrorError | None, *, success_is_final: bool
    ) -> bool:
        """Store the outcome of a copy, and return whether the callback must be called with it.

        success_is_final: whether all results after a success are ignored."""
        key = (request.repository, request.blob.digest)
        with self._lock:
            if isinstance(error, Cancelled):
                if key not in self._outcomes:
                    self._interrupted.setdefault(key, (request, error))  # another image may still copy it
                return False
            self._interrupted.pop(key, None)
            if key in self._outcomes:
                succeeded = self._outcomes[key] is not None
                if succeeded and (success_is_final or outcome is BlobOutcome.EXISTS):
                    return False
                if not succeeded and outcome is None:
                    return False
            self._outcomes[key] = outcome
            return True

    def close(self) -> None:
        """Record the cancelled copies that no later copy replaced. Call this after the last copy of the run."""
        with self._lock:
            interrupted, self._interrupted = self._interrupted, {}
        for request, error in interrupted.values():
            self._record(request, BlobResult(), error)
