"""Finds the blobs that a base already has, and the content of a bundle that the bundle's inventory does not list."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from mirror.layout.inventory import Inventory
from mirror.layout.sparse import SparseParts
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest


class BaseInventory:
    """The contents of the store into which a differential bundle will be imported.

    inventory: the inventory of that store. If it is None, the store is treated as empty."""

    def __init__(self, inventory: Inventory | None = None) -> None:
        self._inventory = inventory or Inventory()
        self._repositories: dict[Digest, tuple[str, ...]] = {}
        known = self._inventory.blobs.keys() | self._inventory.base.keys()
        for name, contents in sorted(self._inventory.repositories.items()):
            for digest in contents.blobs & known:
                self._repositories[digest] = (*self._repositories.get(digest, ()), name)

    def repositories_with(self, blob: Digest) -> tuple[str, ...]:
        """Return the repositories of the base that have the blob, or an empty tuple if none has it."""
        return self._repositories.get(blob, ())

    def find_blobs(self, manifests: Iterable[Manifest]) -> dict[Digest, tuple[str, ...]]:
        """Return the blobs that the base must have, because the base has a manifest that refers to them.

        Each blob is mapped to the repositories that have the manifest. An inventory made from a report lists only root
        manifests, so its blobs can only be found in this way. manifests: children before parents."""
        found: dict[Digest, tuple[str, ...]] = {}
        implied: dict[Digest, tuple[str, ...]] = {}
        for one in reversed(list(manifests)):
            repositories = implied.get(one.digest) or self._repositories_with_manifest(one.digest)
            # Other inventories list everything that the base has. Of a sparse index, the base may lack children.
            if repositories and self._is_from_report(one.digest):
                implied.update({child.digest: repositories for child in one.children})
                # A target may have an image without its foreign layers.
                found.update({blob.digest: repositories for blob in one.blobs if not blob.foreign})
        return found

    @property
    def is_from_report(self) -> bool:
        """Whether the inventory was made from a report, which has no sizes and lists only root manifests."""
        return any(one.size is None for one in self._inventory.manifests.values())

    def _repositories_with_manifest(self, digest: Digest) -> tuple[str, ...]:
        """Return the repositories of the base that have the manifest, or an empty tuple if none has it."""
        if digest not in self._inventory.manifests:
            return ()
        holders = self._inventory.repositories.items()
        return tuple(sorted(name for name, one in holders if digest in one.manifests))

    def _is_from_report(self, digest: Digest) -> bool:
        """Return whether the entry of a manifest may come from a report, which lists only roots, without sizes."""
        known = self._inventory.manifests.get(digest)
        return known is None or known.size is None


def sparse_parts(inventory: Inventory, read: Callable[[Digest], Manifest]) -> SparseParts:
    """Return the parts that the sparse images of an inventory leave out. read: returns the manifest with a digest."""
    parts = SparseParts(read)
    for contents in inventory.repositories.values():
        for root, platforms in contents.platforms.items():
            parts.add(root, platforms)
    return parts


def find_unlisted(manifest: Manifest, inventory: Inventory, sparse: SparseParts) -> Iterator[tuple[Digest, str]]:
    """Yield each digest that `manifest` refers to but the inventory does not list, together with a message.

    sparse: the parts that the sparse images of the inventory leave out (`sparse_parts`)."""
    blobs = (one.digest for one in manifest.blobs if not one.foreign)
    unlisted = [one.digest for one in manifest.children if one.digest not in inventory.manifests]
    unlisted += [digest for digest in blobs if digest not in inventory.blobs and digest not in inventory.base]
    for digest in unlisted:
        if not sparse.is_left_out(manifest.digest, digest):
            yield digest, f"{digest} is not in the inventory, but {manifest.digest} refers to it"
