"""What a layout loses after images were deleted: only what these images had, and what no other entry needs."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from mirror.errors import NotFound, Refused
from mirror.layout.garbage import find_unused
from mirror.layout.root import Root, make_root
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.util.cancellation import Stop, Work
from tests.support.images import Graph, Made

WORK = Work(Stop())


class Content:
    """The manifests of a layout. missing, damaged: digests that cannot be read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.missing: set[str] = set()
        self.damaged: set[str] = set()

    def read(self, digest: Digest) -> Manifest:
        if digest in self.damaged:
            raise Refused("damaged")
        if digest in self.missing or digest not in self.graph.manifests:
            raise NotFound("missing")
        body = self.graph.manifests[digest]
        return parse_manifest(body.data, body.media_type)

    def root(self, made: Made, *platforms: str) -> Root:
        return make_root(self.read(Digest(made.digest)), "app", "app:tag", platforms)

    def unused(self, deleted: Made, *roots: Root) -> set[Digest]:
        return find_unused([Digest(deleted.digest)], roots, self.read, WORK)

    def all_of(self, made: Made) -> set[str]:
        """Return everything below a manifest."""
        manifest = self.read(Digest(made.digest))
        below: set[str] = {made.digest, *(blob.digest for blob in manifest.blobs)}
        for child in manifest.children:
            below |= self.all_of(Made(child.media_type, child.digest, child.size or 0))
        return below


def without(found: Collection[str], *others: Collection[str]) -> set[str]:
    return set(found).difference(*others)


def test_everything_that_only_the_deleted_image_has_is_unused() -> None:
    graph = Graph("layout")
    shared = graph.layer("shared")
    kept, gone = (graph.image(tag, layers=[shared, graph.layer(tag)], label=tag) for tag in ("kept", "gone"))
    index = graph.platforms("index")
    content = Content(graph)
    assert content.all_of(gone) == content.unused(gone)
    assert without(content.all_of(gone), {shared.digest}) == content.unused(gone, content.root(kept))
    assert content.all_of(index) == content.unused(index, content.root(kept), content.root(gone))


def test_what_another_entry_needs_stays() -> None:
    graph = Graph("layout")
    index = graph.platforms("index")
    content = Content(graph)
    child = content.read(Digest(index.digest)).children[0]
    part = Made(child.media_type, child.digest, child.size or 0)
    assert set() == content.unused(index, content.root(index))
    assert set() == content.unused(part, content.root(index))
    assert without(content.all_of(index), content.all_of(part)) == content.unused(index, content.root(part))


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_nothing_is_unused_if_an_entry_cannot_be_read(how: str) -> None:
    graph = Graph("layout")
    kept, gone = graph.platforms("kept"), graph.image("gone")
    content = Content(graph)
    root = content.root(kept)
    child = content.read(Digest(kept.digest)).children[0]
    for digest in (kept.digest, child.digest):
        setattr(content, how, {digest})
        assert set() == content.unused(gone, root)


def test_a_sparse_image_may_lack_children_but_not_its_index() -> None:
    graph = Graph("layout")
    kept, gone = graph.platforms("kept"), graph.image("gone")
    content = Content(graph)
    root = content.root(kept, "linux/amd64")
    content.missing = {content.read(Digest(kept.digest)).children[1].digest}
    assert content.all_of(gone) == content.unused(gone, root)
    content.missing = {kept.digest}
    assert set() == content.unused(gone, root)


def test_a_deleted_manifest_that_cannot_be_read_is_unused_itself() -> None:
    graph = Graph("layout")
    kept, gone = graph.image("kept"), graph.image("gone")
    content = Content(graph)
    root = content.root(kept)
    content.damaged = {gone.digest}
    assert {gone.digest} == content.unused(gone, root)
