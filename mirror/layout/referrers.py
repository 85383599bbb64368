"""Which manifests of a layout have a subject: there is no list of them, so they are found by reading."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence

from mirror.errors import NotFound, Refused
from mirror.layout.index import Root
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.util.cancellation import Work
from mirror.util.single_flight import Once

MAX_READ = 1_000_000  # manifests

# (repository, or None for every one; subject) -> what refers to it
_Found = dict[tuple[str | None, Digest], dict[Digest, Descriptor]]
# What counts of a manifest here: itself, its subject, its children.
_Read = tuple[Descriptor, Digest | None, tuple[Descriptor, ...]]


class Subjects:
    """The referrers of a store, read when they are first asked for, again when its roots are others. Thread-safe.

    manifest: reads one of the store, by its digest."""

    def __init__(self, manifest: Callable[[str, str, Work], Manifest]) -> None:
        self._manifest = manifest
        self._lock = threading.Lock()
        self._key: Hashable = None
        self._known: Once[_Found] | None = None

    def of(
        self, repository: str, digest: Digest, key: Hashable, roots: Callable[[], Sequence[Root]], work: Work
    ) -> list[Descriptor]:
        """What refers to `digest`, in order. key: another one for other roots, taken before they are.

        roots: asked after what they are read for can be told of a change, so that none falls between the two.
        Raises Cancelled, LocalError."""
        with self._lock:
            if self._known is None or key != self._key:
                self._key, self._known = key, Once(lambda work: self._read(roots(), work))
            known = self._known
        found = known.get(work)
        with self._lock:
            both = {**found.get((None, digest), {}), **found.get((repository, digest), {})}
        return [both[one] for one in sorted(both)]

    def add(self, repository: str, manifest: Manifest) -> None:
        """`manifest` was put: it is among the roots, or under one."""
        with self._lock:
            found = self._known.peek() if self._known is not None else None
            if found is None:
                self._known = None
            else:
                _note(found, repository, *_parts(manifest)[:2])

    def forget(self) -> None:
        """Something was taken away: it is none of the roots any more."""
        with self._lock:
            self._known = None

    def _read(self, roots: Sequence[Root], work: Work) -> _Found:
        """What is damaged is left out here: it is told of when it is copied."""
        found: _Found = {}
        read: dict[Digest, _Read | None] = {}
        todo = list(dict.fromkeys((root.repository or None, root.descriptor.digest) for root in roots))
        seen = set(todo)
        while todo:
            work.stop.check()
            repository, digest = todo.pop()
            if digest not in read:
                read[digest] = self._parts_of(digest, work)
            one = read[digest]
            if one is None:
                continue
            _note(found, repository, *one[:2])
            for child in one[2]:
                if (repository, child.digest) not in seen and len(seen) < MAX_READ:
                    seen.add((repository, child.digest))
                    todo.append((repository, child.digest))
        return found

    def _parts_of(self, digest: Digest, work: Work) -> _Read | None:
        try:
            return _parts(self._manifest("", digest, work))
        except (NotFound, Refused):
            return None


def _parts(manifest: Manifest) -> _Read:
    subject = manifest.subject.digest if manifest.subject is not None else None
    return Descriptor(manifest.digest, manifest.size, manifest.media_type), subject, manifest.children


def _note(found: _Found, repository: str | None, one: Descriptor, subject: Digest | None) -> None:
    if subject is not None:
        found.setdefault((repository, subject), {})[one.digest] = one
