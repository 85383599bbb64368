"""What became of each blob and manifest in each target repository: one record of it, for the log."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeAlias

from mirror.errors import Cancelled, MirrorError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.transfer.blob_request import BlobCost, BlobOutcome, BlobRequest, BlobResult

Told: TypeAlias = Callable[[BlobRequest, "BlobResult | MirrorError", BlobCost], None]

NOTHING = BlobCost()


class BlobRecorder:
    """Calls `told` once for each (repository, digest): again only if a failure turns into a success, or if the bytes
    had to be brought after all. It gets the cost of a failure too, which `spent` gives to one image. Thread-safe."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._lock = threading.Lock()
        self._known: dict[tuple[Repository, Digest], BlobOutcome | None] = {}  # None: failed
        self._spent: dict[tuple[Repository, Digest], BlobCost] = {}  # of failures that no image has counted yet
        self._interrupted: dict[tuple[Repository, Digest], tuple[BlobRequest, Cancelled]] = {}

    def record_blob(self, request: BlobRequest, what: BlobResult | MirrorError, cost: BlobCost = NOTHING) -> None:
        """A delivery has ended. cost: what it took, if it failed."""
        if not self._first(request, what, success_is_final=False):
            if isinstance(what, BlobResult):
                what.claim()  # the record, and the count of the report, are those of the first
            return
        if isinstance(what, MirrorError):
            with self._lock:
                self._spent[request.repository, request.blob.digest] = cost
        self._told(request, what, cost)

    def take_failed_cost(self, request: BlobRequest) -> BlobCost:
        """What a recorded failure took, for the first image that asks; nothing for the others."""
        with self._lock:
            return self._spent.pop((request.repository, request.blob.digest), NOTHING)

    def record_manifest(self, request: BlobRequest, what: BlobResult | MirrorError) -> None:
        """A manifest was put, was there already, or could not be put; perhaps by several references."""
        if self._first(request, what, success_is_final=True):
            self._told(request, what, NOTHING)

    def _first(self, request: BlobRequest, what: BlobResult | MirrorError, *, success_is_final: bool) -> bool:
        key = (request.repository, request.blob.digest)
        outcome = what.outcome if isinstance(what, BlobResult) else None
        with self._lock:
            if isinstance(what, Cancelled):
                if key not in self._known:
                    self._interrupted.setdefault(key, (request, what))  # another image may still bring it
                return False
            self._interrupted.pop(key, None)
            if key in self._known:
                succeeded = self._known[key] is not None
                if succeeded and (success_is_final or outcome is BlobOutcome.EXISTS):
                    return False
                if not succeeded and outcome is None:
                    return False
            self._known[key] = outcome
            return True

    def close(self) -> None:
        """Nothing will be brought any more: record what was called off."""
        with self._lock:
            left, self._interrupted = self._interrupted, {}
        for request, error in left.values():
            self._told(request, error, NOTHING)
