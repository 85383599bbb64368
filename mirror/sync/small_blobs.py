"""A Source that reads each small blob only once.

It is used for mirrors that select tags by date or select platforms, because these read configs before copying them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from mirror.errors import MirrorError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import BlobReader, Source, Version
from mirror.transfer.downloads import BufferedReader
from mirror.util.cancellation import Work

LARGEST_SMALL = 256 << 10  # maximum size of a cached blob in bytes
MAX_KEPT = 8 << 20  # maximum size of all cached blobs in bytes; the least recently used blobs are discarded


class SmallBlobSource:
    """A Source that wraps another source, and caches its small blobs in memory. Thread-safe.

    Only blobs with the right digest are kept. If a blob is read twice at the same time, both requests are sent."""

    def __init__(self, source: Source) -> None:
        self.host = source.host
        self.partial = source.partial
        self._source = source
        self._lock = threading.Lock()
        self._kept: OrderedDict[Digest, bytearray] = OrderedDict()
        self._bytes = 0

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the repositories in the wrapped source."""
        return self._source.repositories(prefix, work)

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the tags in the wrapped source."""
        return self._source.tags(repository, work)

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        """Resolve references in the wrapped source."""
        return self._source.resolve(repository, references, work)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Read a reference in the wrapped source."""
        return self._source.read(repository, reference, work)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Return a manifest from the wrapped source."""
        return self._source.manifest(repository, reference, work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open a blob. A small blob is read from the wrapped source only if it is not in memory."""
        if blob.size is None or not 0 < blob.size <= LARGEST_SMALL:
            return self._source.open_blob(repository, blob, work, offset=offset)
        data = self._find(blob.digest)
        if data is None:
            data = self._read(repository, blob, blob.size, work)
            if blob.digest == Digest.of(bytes(data), blob.digest.algorithm):
                self._keep(blob.digest, data)
        return BufferedReader(data, offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return whether the wrapped source leaves out a blob."""
        return self._source.omits_blob(blob)

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        """Return the referrers of a manifest from the wrapped source."""
        return self._source.referrers(repository, digest, work)

    def _read(self, repository: str, blob: Descriptor, size: int, work: Work) -> bytearray:
        """Read a blob. If the blob is too long, return one byte more than its size, so that the caller detects this."""
        data = bytearray(size + 1)
        length = 0
        with self._source.open_blob(repository, blob, work) as reader:
            while length < len(data) and (count := reader.readinto(memoryview(data)[length:])):
                length += count
        del data[length:]
        return data

    def _find(self, digest: Digest) -> bytearray | None:
        """Return a blob if it is in memory, otherwise None."""
        with self._lock:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def _keep(self, digest: Digest, data: bytearray) -> None:
        """Keep a blob in memory. If the total size exceeds the limit, discard other blobs."""
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = data
                self._bytes += len(data)
            while self._bytes > MAX_KEPT:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= len(dropped)
