"""Tracks the sources from which each blob can be read: the sources of all copy requests in progress for the blob."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mirror.oci.digest import Digest
from mirror.transfer.blob_request import BlobRequest, BlobSource

MAX_OTHERS = 8  # maximum number of sources from other requests that are tried


class BlobSources:
    """Tracks, for each blob, the sources of the copy requests in progress.

    A digest identifies the same bytes everywhere, so a blob that one source lacks can be read from another one."""

    def __init__(self) -> None:
        self._sources: dict[Digest, Counter[BlobSource]] = {}  # number of requests in progress by source

    @contextmanager
    def register(self, request: BlobRequest) -> Iterator[None]:
        """Return a context manager that lets other requests read the blob from this request's source.

        This ends when the `with` block exits."""
        digest = request.blob.digest
        self._sources.setdefault(digest, Counter())[request.source] += 1
        try:
            yield
        finally:
            sources = self._sources[digest]
            sources[request.source] -= 1
            if not any(sources.values()):
                del self._sources[digest]

    def next_untried(self, request: BlobRequest, tried: Collection[BlobSource]) -> list[BlobSource]:
        """Return the next sources to try, all on one host, or an empty list if all were tried.

        The request's own source comes first."""
        others = [source for source in self._sources.get(request.blob.digest, ()) if source != request.source]
        left = [source for source in (request.source, *others[:MAX_OTHERS]) if source not in tried]
        return [source for source in left if source.store.host == left[0].store.host]
