"""Sparse images in stores: the platforms that they record, and what is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mirror.errors import NotFound, Refused
from mirror.layout.index import Index
from mirror.layout.sparse import SparseParts, parse_platforms
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest


def index_of(*entries: dict[str, Any]) -> Manifest:
    return parse_manifest(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode())


def entry(name: str, architecture: str = "", **more: Any) -> dict[str, Any]:
    platform = {"platform": {"os": "linux", "architecture": architecture}} if architecture else {}
    return {"mediaType": OCI_MANIFEST, "digest": Digest.of(name.encode()), "size": 1, **platform, **more}


def nested(index: Manifest) -> dict[str, Any]:
    return {"mediaType": OCI_INDEX, "digest": index.digest, "size": index.size}


def parts_of(root: Manifest, *others: Manifest, platforms: tuple[str, ...] = ("linux/amd64",)) -> SparseParts:
    known = {manifest.digest: manifest for manifest in (root, *others)}

    def read(digest: Digest) -> Manifest:
        if digest not in known:
            raise NotFound(digest)
        return known[digest]

    parts = SparseParts(read)
    parts.add(root.digest, platforms)
    return parts


def test_manifests_of_other_platforms_are_left_out_also_below_a_nested_index() -> None:
    inner = index_of(entry("a", "amd64"), entry("b", "arm64"))
    outer = index_of(nested(inner), entry("c", "s390x"), entry("chart"))
    parts = parts_of(outer, inner)
    left_out = {
        name
        for name in ("a", "b", "c", "chart")
        for index in (inner, outer)
        if parts.is_left_out(index.digest, Digest.of(name.encode()))
    }
    assert {"b", "c"} == left_out
    assert not parts.is_left_out(outer.digest, inner.digest)
    assert not parts.is_left_out(Digest.of(b"another index"), Digest.of(b"c"))


def test_everything_counts_as_needed_if_an_index_is_missing_or_has_none_of_the_platforms() -> None:
    inner = index_of(entry("a", "amd64"), entry("b", "arm64"))
    outer = index_of(nested(inner), entry("c", "s390x"))
    for parts in (parts_of(outer), parts_of(outer, inner, platforms=("linux/386",))):
        assert not parts.is_left_out(outer.digest, Digest.of(b"c"))


@pytest.mark.parametrize("value", ["", [], "linux", 7, ["linux/amd64", 7], {}, ["linux/amd64"] * 101, "linux/amd64,"])
def test_invalid_platforms_are_refused(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        parse_platforms(value, "index.json")
    assert "bundle_invalid" == caught.value.code


def test_an_index_file_has_the_platforms_of_a_root_and_forgets_them_with_the_root() -> None:
    manifest = index_of(entry("a", "amd64"), entry("b", "arm64"))
    index = Index("index.json")
    index.put("app", "v1", manifest, ("linux/amd64",))
    index.put("app", manifest.digest, manifest, ("linux/arm64",))
    again = Index.parse(index.render(), "index.json")
    assert ("linux/amd64",) == again.platforms("app", "v1")
    assert ("linux/amd64", "linux/arm64") == again.platforms("app", manifest.digest)
    assert () == again.platforms("other", manifest.digest)
    again.put("app", "v1", manifest)
    assert () == again.platforms("app", "v1")
    assert () == again.platforms("app", manifest.digest), "the repository has the complete image, too"


def test_an_entry_with_invalid_platforms_cannot_be_used() -> None:
    manifest = index_of(entry("a", "amd64"))
    index = Index("index.json")
    index.put("app", "v1", manifest, ("linux/amd64",))
    damaged = Index.parse(index.render().replace(b"linux/amd64", b"linux/amd65"), "index.json")
    (error,) = damaged.tags("app")
    assert isinstance(error, Refused)
