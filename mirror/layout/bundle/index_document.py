"""Creates the index.json of a bundle from the bundle's inventory."""

from __future__ import annotations

import json

from mirror.layout.inventory import REF_NAME, Inventory
from mirror.layout.root import OF_REPOSITORY
from mirror.layout.sparse import OF_PLATFORMS
from mirror.oci import manifest as manifests
from mirror.oci.digest import Digest

OF_INVENTORY = "mirror.inventory"  # annotation of index.json that holds the sha256 digest of the inventory


def index_json(inventory: Inventory, inventory_bytes: bytes) -> bytes:
    """Return the content of index.json that matches an inventory. inventory_bytes: the bytes of the inventory file."""

    def entry(digest: Digest, annotations: dict[str, str]) -> dict[str, object]:
        """Return the index.json entry for a manifest."""
        found = inventory.manifests[digest]
        return {"mediaType": found.media_type, "digest": digest, "size": found.size, "annotations": annotations}

    def platforms(name: str, digest: Digest) -> dict[str, str]:
        """Return the annotation with the platforms of a sparse image, or an empty dict for a complete image."""
        found = inventory.repositories[name].platforms.get(digest)
        return {OF_PLATFORMS: ",".join(found)} if found else {}

    tagged = [
        entry(digest, {REF_NAME: f"{name}:{tag}", **platforms(name, digest)})
        for name, tag, digest in inventory.references()
    ]
    untagged = [
        entry(digest, {OF_REPOSITORY: name, **platforms(name, digest)})
        for name, contents in sorted(inventory.repositories.items())
        for digest in sorted(contents.roots)
    ]
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_INDEX,
        "manifests": tagged + untagged,
        "annotations": {OF_INVENTORY: Digest.of(inventory_bytes)},
    }
    return json.dumps(document, indent=1).encode() + b"\n"
