"""Remembers which blobs could not be read in this run, so that later images do not request them again."""

from __future__ import annotations

import threading

from mirror.errors import MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.transfer.blob_request import BlobSource

_WRONG_BYTES = frozenset({"digest_mismatch", "size_mismatch"})


class ReadFailures:
    """Remembers why blobs could not be read from their sources. Thread-safe.

    If the size or digest of a blob is wrong, the error applies to all repositories of the store, because stores usually
    keep one copy per digest. Any other error, such as a missing blob, applies to one repository."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._errors: dict[tuple[str, str | None, Digest, int | None], MirrorError] = {}

    def add(self, source: BlobSource, blob: Descriptor, error: MirrorError) -> None:
        """Remember an error, unless a retry may help or the source did not cause it."""
        if not error.retryable and isinstance(error, RemoteError | Refused):
            repository = None if error.code in _WRONG_BYTES else source.repository
            kept = error.with_text(error.what)  # without the traceback, which would keep its frames alive
            with self._lock:
                self._errors[source.store.host, repository, blob.digest, blob.size] = kept

    def find(self, source: BlobSource, blob: Descriptor) -> MirrorError | None:
        """Return a copy of the error with which reading `blob` from `source` failed, or None if it has not failed."""
        with self._lock:
            for repository in (None, source.repository):
                error = self._errors.get((source.store.host, repository, blob.digest, blob.size))
                if error is not None:
                    return error.with_text(error.what)
            return None
