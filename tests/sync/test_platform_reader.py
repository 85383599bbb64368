"""Selecting the platforms of images: what is read for it, and which images are errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mirror.errors import MirrorError, OtherPlatform
from mirror.limits import Limits
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest
from mirror.oci.platform import Platform
from mirror.oci.platform_filter import CONFIG_TYPES, FilteredIndex, PlatformFilter
from mirror.sync.manifest_graph import MAX_DEPTH, ManifestCache
from mirror.sync.platform_reader import MAX_CONFIG, PlatformReader
from mirror.transfer.calls import Calls, new_loop
from mirror.util.cancellation import Stop
from tests.support.stores import MemoryStore

AMD64 = PlatformFilter.of([Platform("linux", "amd64")])


def put(store: MemoryStore, document: dict[str, Any]) -> Manifest:
    manifest = parse_manifest(json.dumps(document).encode())
    store.manifests["app"][manifest.digest] = manifest
    return manifest


def image(store: MemoryStore, config: bytes, *, size: int | None = None, media_type: str = CONFIG_TYPES[0]) -> Manifest:
    blob = store.add("app", config)
    descriptor = {"mediaType": media_type, "digest": blob.digest, "size": len(config) if size is None else size}
    return put(store, {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": []})


def index(store: MemoryStore, *children: Manifest | dict[str, Any], note: str = "") -> Manifest:
    entries = [
        {"mediaType": one.media_type, "digest": one.digest, "size": one.size} if isinstance(one, Manifest) else one
        for one in children
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": {"note": note}}
    return put(store, document)


def select(store: MemoryStore, *roots: Manifest) -> list[FilteredIndex | MirrorError]:
    """Select linux/amd64 of each image, one after another."""
    loop = new_loop()
    calls = Calls(loop, Limits(), Stop())
    reader = PlatformReader(calls, ManifestCache(calls))
    results: list[FilteredIndex | MirrorError] = []
    try:
        for root in roots:
            try:
                results.append(loop.run_until_complete(reader.filter(store, "app", root, AMD64)))
            except MirrorError as error:
                results.append(error)
    finally:
        calls.close()
    return results


def codes(results: Sequence[FilteredIndex | MirrorError]) -> list[str]:
    return [result.code if isinstance(result, MirrorError) else "" for result in results]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore("source")


def test_a_config_is_read_once_for_all_manifests_that_have_it(store: MemoryStore) -> None:
    config = b'{"os": "linux", "architecture": "s390x"}'
    first = image(store, config)
    second = put(store, {**json.loads(first.body), "annotations": {"other": "manifest"}})
    results = select(store, first, second, first)
    assert [True] * 3 == [isinstance(result, OtherPlatform) for result in results]
    assert 1 == len(store.verbs("open"))
    assert "the image is for linux/s390x" in str(results[0])


def test_the_config_of_an_artifact_is_not_read(store: MemoryStore) -> None:
    chart = image(store, b"{}", media_type="application/vnd.cncf.helm.config.v1+json")
    [result] = select(store, chart)
    assert isinstance(result, FilteredIndex)
    assert chart is result.root
    assert [] == store.verbs("open")


def test_an_image_whose_platform_cannot_be_determined_is_kept(store: MemoryStore) -> None:
    large = image(store, b'{"os": "linux", "architecture": "s390x"}', size=MAX_CONFIG + 1)
    invalid = image(store, b"no JSON")
    assert ["", ""] == codes(select(store, large, invalid))
    assert 1 == len(store.verbs("open")), "the large one is not read"


def test_a_config_that_does_not_match_its_descriptor_is_refused(store: MemoryStore) -> None:
    damaged = image(store, b'{"os": "linux", "architecture": "s390x"}')
    store.blobs["app"][damaged.blobs[0].digest] = b'{"os": "linux", "architecture": "amd64"}'
    short = image(store, b'{"os": "linux", "architecture": "riscv64"}', size=5)
    assert ["digest_mismatch", "size_mismatch"] == codes(select(store, damaged, short))


def test_nested_indexes_are_read_and_checked_within_the_limits_of_other_reads(store: MemoryStore) -> None:
    deep = index(store, note="0")
    for number in range(MAX_DEPTH + 2):
        deep = index(store, deep, deep, note=str(number + 1))
    inner = index(store, note="inner")
    wrong_size = index(store, {"mediaType": OCI_INDEX, "digest": inner.digest, "size": inner.size + 1})
    wrong_type = index(store, {"mediaType": OCI_INDEX, "digest": image(store, b"x").digest, "size": 1})
    missing = index(store, {"mediaType": OCI_INDEX, "digest": Digest.of(b"?"), "size": 1})
    results = select(store, deep, wrong_size, wrong_type, missing)
    assert ["too_deep", "size_mismatch", "size_mismatch", "not_found"] == codes(results)


def test_a_manifest_that_states_no_type_is_read_to_find_out_whether_it_is_an_index(store: MemoryStore) -> None:
    inner = index(
        store,
        {
            "mediaType": OCI_MANIFEST,
            "digest": Digest.of(b"a"),
            "size": 1,
            "platform": {"os": "linux", "architecture": "s390x"},
        },
    )
    other = image(store, b"{}")
    root = index(
        store,
        {"digest": inner.digest, "size": inner.size},
        {"digest": other.digest, "size": other.size},
        {
            "mediaType": OCI_MANIFEST,
            "digest": Digest.of(b"b"),
            "size": 1,
            "platform": {"os": "linux", "architecture": "amd64"},
        },
    )
    [result] = select(store, root)
    assert isinstance(result, FilteredIndex)
    assert [other.digest, Digest.of(b"b")] == [child.digest for child in result.root.children]
