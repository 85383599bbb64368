"""Where the blobs that are wanted at the moment may be read from: the sources of all who want them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mirror.oci.digest import Digest
from mirror.transfer.blob_request import BlobRequest
from mirror.transfer.downloads import BlobSource

MAX_OTHERS = 8  # repositories that are tried besides the order's own


class BlobSources:
    """A digest is the same bytes everywhere, so what one source lacks may come from another one's."""

    def __init__(self) -> None:
        self._wanted: dict[Digest, Counter[BlobSource]] = {}  # origin -> orders that are in progress

    @contextmanager
    def register(self, request: BlobRequest) -> Iterator[None]:
        """While this order is in progress, also if it joins another one, others may read the blob from its origin."""
        digest = request.blob.digest
        self._wanted.setdefault(digest, Counter())[request.source] += 1
        try:
            yield
        finally:
            origins = self._wanted[digest]
            origins[request.source] -= 1
            if not any(origins.values()):
                del self._wanted[digest]

    def next_untried(self, request: BlobRequest, tried: Collection[BlobSource]) -> list[BlobSource]:
        """The next origins to read it from, all of one host; the order's own first. Empty: all were tried."""
        others = [origin for origin in self._wanted.get(request.blob.digest, ()) if origin != request.source]
        left = [origin for origin in (request.source, *others[:MAX_OTHERS]) if origin not in tried]
        return [origin for origin in left if origin.store.host == left[0].store.host]
