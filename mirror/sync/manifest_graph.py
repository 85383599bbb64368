"""Reading an image as a graph: its root, what the root refers to, and so on down to the blobs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator

from mirror.errors import Refused
from mirror.oci.descriptor import Descriptor, unique_descriptors
from mirror.oci.digest import Digest
from mirror.oci.manifest import MAX_BYTES, Manifest, too_big
from mirror.store import Source
from mirror.sync.manifest_bodies import ManifestBodies
from mirror.transfer.calls import Calls
from mirror.transfer.permits import LARGE, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct

MAX_DEPTH = 16  # indexes within indexes
MAX_MANIFESTS = 10_000  # under one root
CACHE_BYTES = 32 << 20
LARGE_SIZE = 1 << 20  # bytes
_BUILT_WRONG = "the image itself is wrong, not a copy of it: have it built and pushed again"


class WrongDescriptor(Refused):
    """An index describes a child wrongly: the image itself is broken, wherever it is."""


def permits(host: str, size: int | None) -> tuple[str, ...]:
    """The permits for reading or putting a manifest of `size` bytes: few large ones are in memory at once."""
    return (host_permit(host), LARGE) if size is not None and size > LARGE_SIZE else (host_permit(host),)


class ManifestGraph(Struct, frozen=True):
    """An image; bodies of its manifests are read when they are needed.

    levels: its manifests without the root, lowest first: each level refers only to lower ones.

    blobs: each digest once, without foreign layers."""

    root: Manifest
    levels: tuple[tuple[Manifest, ...], ...]
    blobs: tuple[Descriptor, ...]

    def manifests(self) -> Iterator[Manifest]:
        """Every manifest, the root last."""
        for level in self.levels:
            yield from level
        yield self.root


class ManifestCache:
    """The manifests of a run, read once from each host; the last few MiB are kept.

    by_repository: read them once from each repository, since a repository can lack what another one of its host has.
    bodies: has the bytes of all that are kept here, or are part of a graph that is in use. Default: only in memory."""

    def __init__(
        self,
        calls: Calls,
        limit: int = CACHE_BYTES,
        *,
        by_repository: bool = False,
        bodies: ManifestBodies | None = None,
    ) -> None:
        self._calls = calls
        self._reads: SharedTasks[tuple[str, str, str], Manifest] = SharedTasks(calls.tasks)
        self._limit = limit
        self._by_repository = by_repository
        self._bodies = bodies or ManifestBodies(None)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, Digest], Manifest] = OrderedDict()
        self._bytes = 0

    async def read(self, source: Source, repository: str, reference: str, size: int | None = None) -> Manifest:
        """Read it; joins a read of the same manifest that is in progress. By a tag: read for certain.

        size: bytes, where they are known."""
        home = self._home(source, repository)

        def run(work: Work) -> Manifest:
            return self._find(home, reference) or self._keep(home, source.manifest(repository, reference, work))

        return self._find(home, reference) or await self._reads.run(
            (source.host, repository, reference),
            lambda: self._calls.call(run, needs=permits(source.host, size), policy=ONCE),
        )

    async def graph(
        self, source: Source, repository: str, reference: str, known: Manifest | None = None
    ) -> ManifestGraph:
        """The graph under `reference`. Raises Refused: too_deep, too_many, type_mismatch, size_mismatch."""
        root = await (self._noted(source, repository, known) if known else self.read(source, repository, reference))
        found: dict[Digest, Manifest] = {root.digest: root}
        level = [root]
        for _ in range(MAX_DEPTH + 1):
            wanted = {child.digest: child for parent in level for child in parent.children if child.digest not in found}
            if not wanted:
                return _assemble(root, found)
            if len(found) + len(wanted) > MAX_MANIFESTS:
                raise Refused(f"{repository}: more than {MAX_MANIFESTS} manifests under one root", code="too_many")
            for descriptor in wanted.values():
                if descriptor.size is not None and descriptor.size > MAX_BYTES:
                    raise too_big(f"{source.host}/{repository}@{descriptor.digest}", descriptor.size)
            level = await run_group(self.read(source, repository, digest, one.size) for digest, one in wanted.items())
            for child, descriptor in zip(level, wanted.values(), strict=True):
                _as_described(child, descriptor, f"{source.host}/{repository}")
                found[child.digest] = child
        raise Refused(f"{repository}: indexes nested deeper than {MAX_DEPTH}", code="too_deep")

    def note(self, source: Source, repository: str, manifest: Manifest) -> Manifest:
        """Keep a manifest that was read elsewhere. -> the same, without its body. Any thread; may write a file."""
        return self._keep(self._home(source, repository), manifest)

    async def _noted(self, source: Source, repository: str, manifest: Manifest) -> Manifest:
        """`note` in a call, since it may write a file."""
        return await self._calls.call(lambda work: self.note(source, repository, manifest), policy=ONCE)

    def _home(self, source: Source, repository: str) -> str:
        return f"{source.host}/{repository}" if self._by_repository else source.host

    def close(self) -> None:
        """Remove the files of bodies, those that a killed run left, too."""
        self._bodies.close()

    def _find(self, home: str, reference: str) -> Manifest | None:
        if ":" not in reference:
            return None
        with self._lock:
            kept = self._kept.get((home, Digest(reference)))
            if kept is not None:
                self._kept.move_to_end((home, kept.digest))
            return kept

    def _keep(self, home: str, manifest: Manifest) -> Manifest:
        with self._lock:  # what goes makes room before another body comes
            while self._bytes + manifest.size > self._limit and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.size
        kept = self._bodies.keep(manifest)
        with self._lock:
            if (home, kept.digest) not in self._kept:
                self._bytes += kept.size
                self._kept[home, kept.digest] = kept
        return kept


def _as_described(child: Manifest, descriptor: Descriptor, what: str) -> None:
    """Size and type are the parent's word; a child that is something else would be taken for two things."""
    if descriptor.size is not None and child.size != descriptor.size:
        raise WrongDescriptor(
            f"{what}@{child.digest} is {child.size} bytes long, its index says {descriptor.size}",
            hint=_BUILT_WRONG,
            code="size_mismatch",
        )
    if descriptor.media_type and descriptor.media_type != child.media_type:
        raise WrongDescriptor(
            f"{what}@{child.digest} is a {child.media_type}, its index says {descriptor.media_type}",
            hint=_BUILT_WRONG,
            code="type_mismatch",
        )


def _assemble(root: Manifest, found: dict[Digest, Manifest]) -> ManifestGraph:
    heights: dict[Digest, int] = {}

    # Depth is bounded by MAX_DEPTH, each manifest is visited once.
    def height(one: Manifest) -> int:
        if one.digest not in heights:
            heights[one.digest] = 0  # a digest cannot contain itself; a lie about it ends here
            heights[one.digest] = 1 + max((height(found[child.digest]) for child in one.children), default=-1)
        return heights[one.digest]

    height(root)
    below = [one for one in found.values() if one is not root]
    tall = sorted({heights[one.digest] for one in below})
    levels = tuple(tuple(one for one in below if heights[one.digest] == h) for h in tall)
    blobs = unique_descriptors((blob for one in found.values() for blob in one.blobs), root.digest)
    return ManifestGraph(root, levels, tuple(blob for blob in blobs if not blob.foreign))
