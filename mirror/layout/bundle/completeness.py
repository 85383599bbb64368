"""Does a bundle have all that it names? By its manifests and the sizes of its members; blobs are not read.

`bundle verify`, which reads everything, judges by the same rules (verify.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from mirror.errors import MirrorError
from mirror.layout.bundle.reader import Archive
from mirror.layout.inventory import Inventory, unlisted
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import is_manifest_type
from mirror.util.cancellation import Work


def gaps(archive: Archive, work: Work) -> Iterator[str]:
    """What is missing or not of the right size, or a manifest that is damaged: a line for each. What was left out for a
    base is no gap. Raises LocalError, Cancelled."""
    return _of_listed(archive, archive.inventory, work) if archive.inventory is not None else _of_named(archive, work)


def _of_listed(archive: Archive, inventory: Inventory, work: Work) -> Iterator[str]:
    sizes = {digest: one.size for digest, one in inventory.manifests.items()} | dict(inventory.blobs)
    for digest, size in sizes.items():
        yield from _there(archive, digest, size)
    for digest in inventory.manifests:
        work.stop.check()
        if archive.member(digest) is None:
            continue
        try:
            manifest = archive.manifest(digest)
        except MirrorError as error:
            yield str(error)
            continue
        yield from (text for _, text in unlisted(manifest, inventory))


def _of_named(archive: Archive, work: Work) -> Iterator[str]:
    """From the names in its index, as other tools do."""
    todo = [root.descriptor for root in archive.roots()]
    seen: set[Digest] = set()
    while todo:
        work.stop.check()
        one = todo.pop()
        if one.digest in seen or one.foreign:
            continue
        seen.add(one.digest)
        yield from _there(archive, one.digest, one.size)
        try:
            todo += _below(archive, one)
        except MirrorError as error:
            yield str(error)


def _below(archive: Archive, one: Descriptor) -> list[Descriptor]:
    if archive.member(one.digest) is None or not (is_manifest_type(one.media_type) or not one.media_type):
        return []
    manifest = archive.manifest(one.digest, one.media_type)
    return [*manifest.children, *manifest.blobs]


def _there(archive: Archive, digest: Digest, size: int | None) -> Iterator[str]:
    member = archive.member(digest)
    if member is None:
        yield f"{digest} is missing"
    elif size not in (None, member.size):
        yield f"{digest} has {member.size} bytes, {size} are said"
