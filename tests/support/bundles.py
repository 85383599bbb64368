"""Bundles without a run: image graphs (tests/support/images.py) written to a store in the order of a sync."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

from mirror.layout.base_inventory import BaseInventory
from mirror.layout.bundle.store import BundleStore
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.store import ExpectedImage, Mount
from mirror.util.cancellation import Stop, Work
from tests.support.images import Graph


def work() -> Work:
    return Work(Stop())


class Bytes:
    """A BlobReader over bytes that returns small pieces. after: number of bytes after which reading raises `error`."""

    def __init__(self, data: bytes, *, piece: int = 1000, error: Exception | None = None, after: int = 0) -> None:
        self.size: int | None = len(data)
        self._data, self._piece, self._error, self._after = data, piece, error, after
        self._place = 0

    def readinto(self, buffer: memoryview) -> int:
        if self._error is not None and self._place >= self._after:
            raise self._error
        data = self._data[self._place : self._place + min(self._piece, len(buffer))]
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def __enter__(self) -> Bytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def manifests_of(graph: Graph) -> dict[str, Manifest]:
    return {
        digest: parse_manifest(body.data, body.media_type, expected=Digest(digest))
        for digest, body in graph.manifests.items()
    }


def comings(graph: Graph, repository: str = "app", references: Iterable[str] | None = None) -> list[ExpectedImage]:
    """Return the images that a run would pass to `begin`: every tag of the graph, or `references` (tags or digests)."""
    every = manifests_of(graph)

    def below(digest: str) -> dict[str, Manifest]:
        found: dict[str, Manifest] = {}
        for child in every[digest].children:
            found |= below(child.digest)
        return found | {digest: every[digest]}

    made = []
    for reference in graph.tags if references is None else references:
        manifests = tuple(below(graph.tags.get(reference, reference)).values())
        blobs = {blob.digest: blob for one in manifests for blob in one.blobs if not blob.foreign}
        made.append(ExpectedImage(repository, reference, manifests, tuple(blobs.values())))
    return made


def bring(bundle: BundleStore, images: Iterable[ExpectedImage], blobs: Mapping[str, bytes]) -> list[Digest]:
    """Upload all missing blobs, in an order that is not the bundle's, then the manifests. Return the uploaded blobs."""
    read: list[Digest] = []
    for coming in images:
        for blob in reversed(coming.blobs):
            if not bundle.has_blob(coming.repository, blob, work()):
                upload(bundle, blob, blobs[blob.digest], coming.repository)
                read.append(blob.digest)
        for manifest in coming.manifests:
            bundle.put_manifest(coming.repository, manifest.digest, manifest, work())
        bundle.put_manifest(coming.repository, coming.reference, coming.manifests[-1], work())
    return read


def upload(bundle: BundleStore, blob: Descriptor, data: bytes, repository: str = "app") -> None:
    mounted = bundle.mount_blob(repository, blob, "other", work())
    assert mounted is Mount.ABSENT
    with bundle.begin_upload(repository, blob, work()) as session:
        session.send(lambda offset: Bytes(data[offset:]), work())
        assert session.committed


def export(path: Path, *graphs: Graph, base: BaseInventory | None = None, **named: Graph) -> list[Digest]:
    """Write a bundle of graphs: the first as `app`, the others by name. Return the blobs that were read."""
    images = [coming for graph in graphs for coming in comings(graph)]
    images += [coming for name, graph in named.items() for coming in comings(graph, name.replace("_", "/"))]
    blobs = {digest: data for graph in (*graphs, *named.values()) for digest, data in graph.blobs.items()}
    bundle = BundleStore(path, str(path), spool=path.parent / "spool", base=base, new=True)
    try:
        bundle.begin(images, work())
        read = bring(bundle, images, blobs)
        bundle.finish(whole=True, work=work())
    finally:
        bundle.close()
    return read


def opened(path: Path) -> BundleStore:
    return BundleStore(path, str(path), spool=path.parent / "spool", new=True)


def stock(seed: str = "stock") -> Graph:
    """Make a graph with an index, a docker image with two tags, an artifact, a signature and an empty layer."""
    graph = Graph(seed)
    index = graph.platforms("v1", size=5000)
    graph.image("v2", "latest", layers=[graph.layer("base"), graph.layer("two", oci=False)], oci=False)
    graph.artifact("notes")
    graph.signature(index)
    graph.image("hollow", layers=[graph.empty_blob()])
    return graph
