"""Reading images as graphs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mirror.errors import MirrorError, NotFound, Refused
from mirror.limits import Limits
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from mirror.sync.manifest_graph import MAX_DEPTH, ManifestCache, ManifestGraph
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop
from tests.support.stores import MemoryStore


def put(store: MemoryStore, document: dict[str, Any], *tags: str) -> dict[str, Any]:
    """Store a manifest and return its descriptor."""
    body = json.dumps(document).encode()
    manifest = parse_manifest(body)
    for name in (manifest.digest, *tags):
        store.manifests["app"][name] = manifest
    return {"mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size}


def blob(name: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/x", "digest": Digest.of(name.encode()), "size": len(name), **more}


def image(store: MemoryStore, *layers: str, tags: Sequence[str] = ()) -> dict[str, Any]:
    return put(
        store,
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": blob(f"config {layers}"),
            "layers": [blob(layer) for layer in layers],
        },
        *tags,
    )


def index(store: MemoryStore, *children: dict[str, Any], tags: Sequence[str] = ()) -> dict[str, Any]:
    return put(store, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children)}, *tags)


def read(store: MemoryStore, *references: str, known: Manifest | None = None) -> list[ManifestGraph]:
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop())
    manifests = ManifestCache(calls)
    try:
        return [loop.run_until_complete(manifests.read_graph(store, "app", each, known)) for each in references]
    finally:
        calls.close()


def read_error(store: MemoryStore, reference: str) -> MirrorError:
    with pytest.raises(MirrorError) as caught:
        read(store, reference)
    return caught.value


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("source")


def test_the_graph_of_an_image_has_one_manifest_and_its_blobs(store: MemoryStore) -> None:
    image(store, "a", "b", "a", tags=["v1"])
    [graph] = read(store, "v1")
    assert () == graph.levels
    assert 3 == len(graph.blobs), "config, a and b, each once"


def test_children_come_before_their_parents_and_each_manifest_once(store: MemoryStore) -> None:
    one, two = image(store, "a"), image(store, "b")
    inner = index(store, one, two)
    index(store, inner, one, tags=["v1"])
    [graph] = read(store, "v1")
    assert [{one["digest"], two["digest"]}, {inner["digest"]}] == [
        {child.digest for child in level} for level in graph.levels
    ]
    assert graph.root.digest == [manifest.digest for manifest in graph.manifests()][-1]
    assert 4 == len(store.verbs("manifest"))


def test_nested_indexes_are_read_once_and_are_an_error_if_they_are_too_deep(store: MemoryStore) -> None:
    child = image(store, "a")
    for number in range(40):
        child = put(
            store,
            {
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [child, child],
                "annotations": {"n": str(number)},
            },
            f"l{number}",
        )
    [graph] = read(store, f"l{MAX_DEPTH - 1}")
    assert MAX_DEPTH == len(graph.levels)
    assert 1 + MAX_DEPTH == len(store.verbs("manifest"))
    assert "too_deep" == read_error(store, f"l{MAX_DEPTH + 1}").code


def test_too_many_manifests_under_one_root_are_an_error(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirror.sync.manifest_graph.MAX_MANIFESTS", 5)
    index(store, *[image(store, str(number)) for number in range(5)], tags=["v1"])
    assert "too_many" == read_error(store, "v1").code


@pytest.mark.parametrize(
    ("change", "code"),
    [({"size": 1}, "size_mismatch"), ({"mediaType": OCI_INDEX}, "type_mismatch")],
    ids=["size", "type"],
)
def test_a_child_that_differs_from_its_descriptor_is_an_error(
    store: MemoryStore, change: dict[str, Any], code: str
) -> None:
    index(store, {**image(store, "a"), **change}, tags=["v1"])
    error = read_error(store, "v1")
    assert code == error.code
    assert 3 == error.exit_code


def test_the_error_for_a_missing_child_names_it(store: MemoryStore) -> None:
    child = image(store, "a")
    index(store, child, tags=["v1"])
    del store.manifests["app"][child["digest"]]
    error = read_error(store, "v1")
    assert isinstance(error, NotFound)
    assert child["digest"] in str(error)


def test_a_blob_with_two_sizes_is_an_error(store: MemoryStore) -> None:
    first = image(store, "a")
    second = put(
        store,
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": blob("c"),
            "layers": [{**blob("a"), "size": 999}],
        },
    )
    index(store, first, second, tags=["v1"])
    assert isinstance(read_error(store, "v1"), Refused)


def test_an_entry_of_an_index_that_is_no_manifest_is_a_blob(store: MemoryStore) -> None:
    cache = blob("cache", mediaType="application/vnd.buildkit.cacheconfig.v0")
    index(store, image(store, "a"), cache, tags=["v1"])
    [graph] = read(store, "v1")
    assert cache["digest"] in {layer.digest for layer in graph.blobs}


def test_foreign_layers_are_not_copied(store: MemoryStore) -> None:
    foreign = blob(
        "windows",
        mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        urls=["https://example.com/x"],
    )
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob("c"), "layers": [foreign, blob("own")]}
    put(store, document, "v1")
    [graph] = read(store, "v1")
    assert {blob("c")["digest"], blob("own")["digest"]} == {layer.digest for layer in graph.blobs}


def test_a_layer_that_is_foreign_in_one_manifest_and_regular_in_another_is_copied(store: MemoryStore) -> None:
    regular = blob("base")
    foreign = {
        **regular,
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "urls": ["https://example.com/x"],
    }
    both = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob("c"), "layers": [foreign, regular]}
    put(store, both, "both")
    one, other = (
        put(store, {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blob(name), "layers": [layer]}, name)
        for name, layer in (("one", foreign), ("other", regular))
    )
    index(store, one, other, tags=["index"])
    for graph in read(store, "both", "index"):
        assert regular["digest"] in {layer.digest for layer in graph.blobs}


def test_common_children_of_two_tags_are_read_once(store: MemoryStore) -> None:
    index(store, image(store, "a"), image(store, "b"), tags=["v1", "latest"])
    first, second = read(store, "v1", "latest")
    assert first == second
    assert 4 == len(store.verbs("manifest")), "each tag once, each child once"


def test_a_root_that_was_read_to_resolve_its_tag_is_not_read_again(store: MemoryStore) -> None:
    descriptor = image(store, "a", tags=["v1"])
    known = store.manifests["app"]["v1"]
    [graph] = read(store, descriptor["digest"], known=known)
    assert (known.digest, known.body) == (graph.root.digest, graph.root.body)
    assert [] == store.verbs("manifest")


def test_the_cache_has_a_limit(store: MemoryStore) -> None:
    descriptors = [image(store, str(number)) for number in range(10)]
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop())
    manifests = ManifestCache(calls, limit=3 * descriptors[0]["size"])
    for _ in range(2):
        for each in descriptors:
            assert each["digest"] == loop.run_until_complete(manifests.read(store, "app", each["digest"])).digest
    calls.close()
    assert 20 == len(store.verbs("manifest"))
