"""Where the blobs that are wanted at the moment may be read from: the sources of all who want them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from mirror.oci.digest import Digest
from mirror.transfer.blob_request import Order
from mirror.transfer.downloads import Origin

MOST_OTHERS = 8  # repositories that are tried besides the order's own


class Origins:
    """A digest is the same bytes everywhere, so what one source lacks may come from another one's."""

    def __init__(self) -> None:
        self._wanted: dict[Digest, Counter[Origin]] = {}  # origin -> orders that are in progress

    @contextmanager
    def wanted(self, order: Order) -> Iterator[None]:
        """While this order is in progress, also if it joins another one, others may read the blob from its origin."""
        digest = order.blob.digest
        self._wanted.setdefault(digest, Counter())[order.origin] += 1
        try:
            yield
        finally:
            origins = self._wanted[digest]
            origins[order.origin] -= 1
            if not any(origins.values()):
                del self._wanted[digest]

    def untried(self, order: Order, tried: Collection[Origin]) -> list[Origin]:
        """The next origins to read it from, all of one host; the order's own first. Empty: all were tried."""
        others = [origin for origin in self._wanted.get(order.blob.digest, ()) if origin != order.origin]
        left = [origin for origin in (order.origin, *others[:MOST_OTHERS]) if origin not in tried]
        return [origin for origin in left if origin.source.host == left[0].source.host]
