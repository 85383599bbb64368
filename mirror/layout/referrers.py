"""Finds the referrers of a manifest in a layout or bundle.

Layouts and bundles do not store lists of referrers, so all manifests are read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

from mirror.errors import NotFound, Refused
from mirror.layout.root import Root
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.util.cancellation import Work
from mirror.util.single_flight import LazyValue

MAX_READ = 1_000_000  # maximum number of manifests in an index

# Maps a repository and the digest of a subject to the referrers, by digest. The repository is None for referrers below
# a root that belongs to no repository: they are referrers in every repository.
_ReferrerIndex = dict[tuple[str | None, Digest], dict[Digest, Descriptor]]
# The parts of a manifest that the index needs: its descriptor, the digest of its subject, and its children.
_ManifestParts = tuple[Descriptor, Digest | None, tuple[Descriptor, ...]]


class Referrers:
    """A thread-safe index of the referrers in a store. `find` builds the index on first use, and again after a change.

    manifest: reads a manifest of the store; its arguments are a repository, a tag or digest, and a Work."""

    def __init__(self, manifest: Callable[[str, str, Work], Manifest]) -> None:
        self._manifest = manifest
        self._lock = threading.Lock()
        self._revision: Hashable = None
        self._index: LazyValue[_ReferrerIndex] | None = None

    def find(
        self, repository: str, digest: Digest, revision: Hashable, roots: Callable[[], Sequence[Root]], work: Work
    ) -> list[Descriptor]:
        """Return the referrers of `digest`, sorted by digest.

        roots: returns the current roots of the store. revision: a value that changes when the roots change. The caller
        must read the revision before it calls `find`, so that no change is missed. Raises Cancelled, LocalError."""
        with self._lock:
            if self._index is None or revision != self._revision:
                self._revision, self._index = revision, LazyValue(lambda work: self._build_index(roots(), work))
            index = self._index
        referrers = index.get(work)
        with self._lock:
            merged = {**referrers.get((None, digest), {}), **referrers.get((repository, digest), {})}
        return [merged[one] for one in sorted(merged)]

    def add(self, repository: str, manifest: Manifest) -> None:
        """Add a manifest that was written to the store. If the index is still being built, discard the index."""
        with self._lock:
            referrers = self._index.value_if_created() if self._index is not None else None
            if referrers is None:
                self._index = None
            else:
                _add_referrer(referrers, repository, *_parts(manifest)[:2])

    def invalidate(self) -> None:
        """Discard the index, so that the next `find` builds it again."""
        with self._lock:
            self._index = None

    def _build_index(self, roots: Sequence[Root], work: Work) -> _ReferrerIndex:
        """Read all manifests reachable from `roots`, and build the index of referrers from them.

        Missing and damaged manifests are skipped. The run reports them when it copies their images."""
        referrers: _ReferrerIndex = {}
        parts_by_digest: dict[Digest, _ManifestParts | None] = {}
        todo = list(dict.fromkeys((root.repository or None, root.descriptor.digest) for root in roots))
        seen = set(todo)
        while todo:
            work.stop.raise_if_requested()
            repository, digest = todo.pop()
            if digest not in parts_by_digest:
                parts_by_digest[digest] = self._read_parts(digest, work)
            one = parts_by_digest[digest]
            if one is None:
                continue
            _add_referrer(referrers, repository, *one[:2])
            for child in one[2]:
                if (repository, child.digest) not in seen and len(seen) < MAX_READ:
                    seen.add((repository, child.digest))
                    todo.append((repository, child.digest))
        return referrers

    def _read_parts(self, digest: Digest, work: Work) -> _ManifestParts | None:
        """Read one manifest and return its parts, or None if it is missing or damaged."""
        try:
            return _parts(self._manifest("", digest, work))
        except (NotFound, Refused):
            return None


def _parts(manifest: Manifest) -> _ManifestParts:
    """Return the parts of a manifest that the index of referrers needs."""
    subject = manifest.subject.digest if manifest.subject is not None else None
    descriptor = Descriptor(manifest.digest, manifest.size, manifest.media_type, artifact_type=manifest.artifact_type)
    return descriptor, subject, manifest.children


def _add_referrer(referrers: _ReferrerIndex, repository: str | None, one: Descriptor, subject: Digest | None) -> None:
    """If the manifest `one` has a subject, add it to the referrers of that subject."""
    if subject is not None:
        referrers.setdefault((repository, subject), {})[one.digest] = one
