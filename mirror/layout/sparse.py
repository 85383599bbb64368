"""Sparse images in layouts and bundles: the index is unchanged, but only some of its platforms are present.

The store records the platforms of such an image: a layout in the annotation `mirror.platforms` of the root in
index.json, a bundle also in its inventory. The platforms and the index determine the parts that the image leaves out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection

from mirror.errors import ConfigError, MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.oci.platform import parse_platform
from mirror.oci.platform_filter import MAX_PLATFORMS, PlatformFilter, filter_index, nested_indexes
from mirror.oci.strictjson import Value

OF_PLATFORMS = "mirror.platforms"  # annotation of index.json
_MAX_DEPTH = 16  # levels of nested indexes


def parse_platforms(value: Value, where: str) -> tuple[str, ...]:
    """Parse the platforms of a sparse image, which a store records as a list or as comma-separated text.

    where: the position, for messages. Raises Refused (bundle_invalid)."""
    texts = value.split(",") if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 < len(texts) <= MAX_PLATFORMS:
        raise Refused(f"{where}: expected at least 1 and at most {MAX_PLATFORMS} platforms", code="bundle_invalid")
    try:
        return tuple(sorted({str(parse_platform(text if isinstance(text, str) else "")) for text in texts}))
    except ConfigError as error:
        raise Refused(f"{where}: {error.what}", code="bundle_invalid") from error


class SparseParts:
    """The parts that the sparse images of a store leave out. Not thread-safe.

    read: returns the manifest with a digest; may raise any MirrorError."""

    def __init__(self, read: Callable[[Digest], Manifest]) -> None:
        self._read = read
        self._left_out: defaultdict[Digest, set[Digest]] = defaultdict(set)  # by the index that lists them

    def add(self, root: Digest, platforms: Collection[str]) -> None:
        """Add a sparse image. If it cannot be read, do nothing: its parts then count as needed."""
        try:
            index = self._read(root)
            if index.kind is not Kind.INDEX:
                return
            nested: dict[Digest, Manifest] = {}
            level = [index]
            for _ in range(_MAX_DEPTH):
                children = [child for one in level for child in nested_indexes(one) if child.digest not in nested]
                read = {child.digest: self._read(child.digest) for child in children}
                level = [one for one in read.values() if one.kind is Kind.INDEX]
                nested |= read
            wanted = PlatformFilter.of(map(parse_platform, platforms), sparse=True)
            filtered = filter_index(index, nested, wanted, f"index {root}")
        except MirrorError:
            return
        for digest in filtered.indexes:
            self._left_out[digest] |= filtered.left_out

    def is_left_out(self, index: Digest, part: Digest) -> bool:
        """Return whether a sparse image leaves out `part`, which its index lists."""
        return part in self._left_out.get(index, ())
