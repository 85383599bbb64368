"""Determines the manifests of an image that may have attachments: its root, and the manifests below it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeAlias

from mirror.oci.digest import Digest
from mirror.oci.manifest import INDEX_TYPES, Manifest
from mirror.store import LeftOut
from mirror.sync.manifest_graph import MAX_DEPTH, ManifestGraph
from mirror.transfer.tasks import Coro, run_group
from mirror.util.structs import Struct


class Subjects(Struct, frozen=True):
    """The manifests below the root of an image, whose attachments are copied with the image.

    platforms: the manifests of images for a platform."""

    children: tuple[Digest, ...] = ()
    platforms: tuple[Digest, ...] = ()


SubjectReader: TypeAlias = Callable[[], Awaitable[Subjects]]
"""A function that determines the manifests below the root of an image."""


async def subjects_of_graph(graph: ManifestGraph) -> Subjects:
    """Return the manifests below the root of an image that was read."""
    below = tuple(dict.fromkeys(one.digest for level in graph.levels for one in level))
    return Subjects(below, _platform_images(graph.root, below))


async def read_subjects(
    root: Manifest, read: Callable[[Digest], Coro[Manifest]], left_out: LeftOut | None = None
) -> Subjects:
    """Return the manifests below the root of an image. Only its indexes are read.

    read: reads a manifest. left_out: the parts that a sparse image leaves out."""
    below: dict[Digest, None] = {}
    indexes = [root]
    for _ in range(MAX_DEPTH + 1):
        children = [
            child
            for index in indexes
            for child in index.children
            if child.digest not in below and (left_out is None or not left_out.covers(index, child))
        ]
        below |= dict.fromkeys(child.digest for child in children)
        level = dict.fromkeys(child.digest for child in children if child.media_type in INDEX_TYPES)
        if not level:
            break
        indexes = await run_group(read(digest) for digest in level)
    return Subjects(tuple(below), _platform_images(root, below))


def _platform_images(root: Manifest, below: Iterable[Digest]) -> tuple[Digest, ...]:
    """Return the children of an index that are images for a platform, which excludes BuildKit's attestations."""
    known = set(below)
    children = (child for child in root.children if child.platform is None or child.platform.os != "unknown")
    return tuple(child.digest for child in children if child.digest in known)
