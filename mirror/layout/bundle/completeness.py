"""Checks whether a bundle has everything that it refers to: reads its manifests, and compares the sizes of its members.

Blobs are not read. `mirror bundle verify` (verify.py), which reads everything, applies the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator

from mirror.errors import MirrorError
from mirror.layout.base_inventory import find_unlisted, sparse_parts
from mirror.layout.bundle.reader import BundleReader
from mirror.layout.inventory import Inventory
from mirror.layout.sparse import SparseParts
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import is_manifest_type
from mirror.util.cancellation import Work


def find_gaps(bundle: BundleReader, work: Work) -> Iterator[str]:
    """Yield a message for each member of a bundle that is missing, has the wrong size, or is a damaged manifest.

    A blob that is left out because the base has it is not reported. Raises LocalError, Cancelled."""
    return (
        _find_gaps_by_inventory(bundle, bundle.inventory, work)
        if bundle.inventory is not None
        else _find_gaps_by_index(bundle, work)
    )


def _find_gaps_by_inventory(bundle: BundleReader, inventory: Inventory, work: Work) -> Iterator[str]:
    """Check everything that the inventory lists. Yield a message for each problem."""
    sizes = {digest: one.size for digest, one in inventory.manifests.items()} | dict(inventory.blobs)
    for digest, size in sizes.items():
        yield from _check_member(bundle, digest, size)
    sparse = sparse_parts(inventory, bundle.manifest)
    for digest in inventory.manifests:
        work.stop.raise_if_requested()
        if bundle.member(digest) is None:
            continue
        try:
            manifest = bundle.manifest(digest)
        except MirrorError as error:
            yield str(error)
            continue
        yield from (text for _, text in find_unlisted(manifest, inventory, sparse))


def _find_gaps_by_index(bundle: BundleReader, work: Work) -> Iterator[str]:
    """Check everything reachable from index.json. Yield a message for each problem.

    Used for a bundle without an inventory."""
    roots = sorted(bundle.roots(), key=lambda root: not root.platforms)
    sparse = SparseParts(bundle.manifest)
    for root in roots:
        if root.platforms:
            sparse.add(root.descriptor.digest, root.platforms)
    # Complete images come first: everything that they list is needed, even if another image leaves it out.
    todo = [(root.descriptor, not root.platforms) for root in roots]
    seen: set[Digest] = set()
    while todo:
        work.stop.raise_if_requested()
        one, is_complete = todo.pop()
        if one.digest in seen or (one.foreign and bundle.member(one.digest) is None):
            continue
        seen.add(one.digest)
        yield from _check_member(bundle, one.digest, one.size)
        try:
            todo += [
                (part, is_complete)
                for part in _references_of(bundle, one)
                if is_complete or not sparse.is_left_out(one.digest, part.digest)
            ]
        except MirrorError as error:
            yield str(error)


def _references_of(bundle: BundleReader, one: Descriptor) -> list[Descriptor]:
    """Return the descriptors in the manifest `one`, or an empty list if `one` is a blob."""
    if bundle.member(one.digest) is None or not (is_manifest_type(one.media_type) or not one.media_type):
        return []
    manifest = bundle.manifest(one.digest, one.media_type)
    return [*manifest.children, *manifest.blobs]


def _check_member(bundle: BundleReader, digest: Digest, size: int | None) -> Iterator[str]:
    """Yield a message if a manifest or blob is missing or has the wrong size."""
    member = bundle.member(digest)
    if member is None:
        yield f"{digest} is missing"
    elif size not in (None, member.size):
        yield f"{digest} has {member.size} bytes, expected {size}"
