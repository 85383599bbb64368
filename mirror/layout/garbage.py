"""Finds the content of a layout that is no longer needed after images have been deleted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from mirror.errors import NotFound, Refused
from mirror.layout.root import Root
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.util.cancellation import Work

Read = Callable[[Digest], Manifest]
"""Reads a manifest. Raises NotFound and Refused."""


def find_unused(deleted: Collection[Digest], roots: Iterable[Root], read: Read, work: Work) -> set[Digest]:
    """Return the deleted manifests, and the manifests and blobs below them, that no root needs.

    Only content of the deleted images is returned: other files may belong to a copy that another tool has not finished.
    If a manifest that is still needed is missing or damaged, return an empty set, because its image may need any
    content. Raises Cancelled, LocalError."""
    try:
        needed = _find_needed(roots, read, work)
    except (NotFound, Refused):
        return set()
    unused: set[Digest] = set()
    todo = list(deleted)
    while todo:
        work.stop.raise_if_requested()
        digest = todo.pop()
        if digest in needed or digest in unused:
            continue
        unused.add(digest)
        try:
            manifest = read(digest)
        except (NotFound, Refused):
            continue
        unused.update(blob.digest for blob in manifest.blobs if blob.digest not in needed)
        todo += [child.digest for child in manifest.children]
    return unused


def _find_needed(roots: Iterable[Root], read: Read, work: Work) -> set[Digest]:
    """Return the digests of all manifests and blobs that `roots` need.

    Raises Cancelled, LocalError, Refused, and NotFound if a manifest is missing in an image that is not sparse."""
    needed: set[Digest] = set()
    complete: set[Digest] = set()  # manifests whose parts have been added
    for root in roots:
        todo = [root.descriptor.digest]
        while todo:
            work.stop.raise_if_requested()
            digest = todo.pop()
            needed.add(digest)
            if digest in complete:
                continue
            try:
                manifest = read(digest)
            except NotFound:
                if not root.platforms or digest == root.descriptor.digest:
                    raise
                continue
            complete.add(digest)
            needed.update(blob.digest for blob in manifest.blobs)
            todo += [child.digest for child in manifest.children]
    return needed
