"""The test images: the same for the same seed, and changed if they are serialised again."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import Any

import pytest

from tests.registries.client import sha256
from tests.support import schema1
from tests.support.images import EMPTY, OCI_FOREIGN, Graph, layer_bytes, tag_of


def everything(seed: str) -> Graph:
    graph = Graph(seed)
    index = graph.platforms("v1", "latest")
    graph.index("nested", children=[index, graph.platforms(label="inner", oci=False)])
    graph.image("twice", twice=True, annotations={"a": "b"})
    graph.image("foreign", layers=[graph.foreign_layer("https://example.com/layer")])
    graph.image("hollow", layers=[graph.empty_blob()])
    graph.artifact("notes", annotations={"c": "d"})
    graph.schema1("old")
    graph.signature(index)
    graph.referrer(index)
    return graph


def document(graph: Graph, reference: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(graph.manifests[graph.tags.get(reference, reference)].data)
    return loaded


def test_equal_seeds_give_equal_bytes_and_different_seeds_different_ones() -> None:
    one, two, other = everything("x"), everything("x"), everything("y")
    assert one.blobs == two.blobs
    assert one.manifests == two.manifests
    assert one.tags == two.tags
    assert not set(one.manifests) & set(other.manifests)


def test_every_digest_matches_its_bytes_and_every_reference_exists() -> None:
    graph = everything("x")
    for digest, data in graph.blobs.items():
        assert digest == sha256(data)
    for digest, body in graph.manifests.items():
        old = body.media_type == schema1.MEDIA_TYPE
        assert digest == sha256(schema1.payload(body.data) if old else body.data)
        for child in json.loads(body.data).get("manifests", []):
            assert len(graph.manifests[child["digest"]].data) == child["size"]
    assert set(graph.tags.values()) <= set(graph.manifests)


def test_children_come_before_their_parents() -> None:
    graph = everything("x")
    seen: set[str] = set()
    for digest, body in graph.manifests.items():
        assert {child["digest"] for child in json.loads(body.data).get("manifests", [])} <= seen
        seen.add(digest)


def test_a_manifest_changes_if_it_is_serialised_again() -> None:
    graph = everything("x")
    for body in graph.manifests.values():
        loaded = json.loads(body.data)
        common = [json.dumps(loaded), json.dumps(loaded, indent=3), json.dumps(loaded, separators=(",", ":"))]
        assert body.data.decode() not in common


@pytest.mark.parametrize("size", [0, 1, 3000, 9 << 20])
def test_a_layer_is_a_gzip_of_a_tar_of_one_file(size: int) -> None:
    data, diff_id = layer_bytes("name", size)
    tar = gzip.decompress(data)
    assert diff_id == sha256(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert [size] == [member.size for member in archive]
    assert size <= len(data) <= size + 11_000 + size // 1000


def test_configs_match_their_layers_and_platforms() -> None:
    graph = everything("x")
    children = document(graph, "v1")["manifests"]
    assert ["amd64", "arm64"] == [child["platform"]["architecture"] for child in children]
    for child in children:
        image = document(graph, child["digest"])
        config = json.loads(graph.blobs[image["config"]["digest"]])
        assert child["platform"]["architecture"] == config["architecture"]
        tars = [sha256(gzip.decompress(graph.blobs[layer["digest"]])) for layer in image["layers"]]
        assert tars == config["rootfs"]["diff_ids"]


def test_unusual_images_have_the_property_in_their_name() -> None:
    graph = everything("x")
    twice, foreign, hollow, notes = (document(graph, tag) for tag in ("twice", "foreign", "hollow", "notes"))
    assert twice["layers"][0] == twice["layers"][2]
    layer = foreign["layers"][0]
    assert (OCI_FOREIGN, ["https://example.com/layer"]) == (layer["mediaType"], layer["urls"])
    assert foreign["layers"][0]["digest"] not in graph.blobs
    assert 0 == hollow["layers"][0]["size"]
    assert (EMPTY, sha256(b"{}")) == (notes["config"]["mediaType"], notes["config"]["digest"])


def test_referrers_are_in_the_index_tagged_with_their_subject() -> None:
    graph = Graph("x")
    subject = graph.image("v1")
    made = [graph.referrer(subject, text).digest for text in ("one", "two")]
    assert made == [entry["digest"] for entry in document(graph, tag_of(subject))["manifests"]]
    assert {subject.digest} == {document(graph, digest)["subject"]["digest"] for digest in made}
    assert f"{tag_of(subject)}.sig" not in graph.tags
    graph.signature(subject)
    assert f"{tag_of(subject)}.sig" in graph.tags


def test_a_signed_manifest_contains_its_payload() -> None:
    body = schema1.signed("app", "v1", ["sha256:base", "sha256:top"], "seed")
    loaded = json.loads(body)
    signed = json.loads(schema1.payload(body))
    assert ["sha256:top", "sha256:base"] == [layer["blobSum"] for layer in signed["fsLayers"]]
    assert signed == {key: value for key, value in loaded.items() if key != "signatures"}
    assert body == schema1.signed("app", "v1", ["sha256:base", "sha256:top"], "seed")
    history = [json.loads(entry["v1Compatibility"]) for entry in signed["history"]]
    assert history[0]["parent"] == history[1]["id"]
