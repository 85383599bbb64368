"""Every kind of image and artifact is copied byte for byte; everything that cannot be copied is reported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mirror.oci.digest import Digest
from mirror.state.hints import State
from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.real import RealRegistry
from tests.support import schema1
from tests.support.images import OCI_FOREIGN, OCI_INDEX, OCI_LAYER, Graph, Made, oddly
from tests.support.oracle import assert_equal, assert_whole, walk_tag
from tests.support.seeding import push
from tests.support.tool import MirrorTool


def test_nested_indexes_are_copied_completely(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("nested")
    shared = graph.image(label="shared")
    inner = graph.index(children=[shared, graph.image(label="arm", platform="linux/arm/v7")])
    middle = graph.index(children=[inner, graph.image(label="middle", platform="linux/s390x")])
    graph.index("v1", children=[middle, inner, shared])
    push(source, "app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert len(graph.manifests) == target.counts()["PUT manifest"]
    assert len(graph.blobs) == target.counts()["PUT upload"]


def test_an_empty_index_and_an_index_with_a_duplicate_child_are_copied(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("sparse")
    graph.index("empty", children=[])
    child = graph.image(label="twice")
    graph.index(
        "twice", children=[child, replace(child, extra={"platform": {"os": "linux", "architecture": "riscv64"}})]
    )
    push(source, "app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)


def test_an_index_with_a_missing_child_at_the_source_fails_alone(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", sparse_indexes=True), scripted("target")
    graph = Graph("lacking")
    graph.platforms("whole")
    graph.index("sparse", children=[lost := graph.image(label="lost"), graph.image(label="there")])
    source.load("app", graph)
    del source.storage.repositories["app"].manifests[lost.digest]
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    assert_equal(source, "app", target, tags=["whole"])
    assert ["whole"] == target.tags("app")


def test_artifacts_signatures_and_referrers_are_copied_under_their_tags(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("artifacts")
    image = graph.platforms("v1")
    graph.artifact("chart", kind="application/vnd.cncf.helm.config.v1+json", texts=(b"chart", b"values"))
    graph.artifact("empty", texts=())
    graph.signature(image)
    graph.referrer(image, "one")
    graph.referrer(image, "two")
    push(source, "app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert sorted(graph.tags) == target.tags("app")


def test_empty_layers_duplicate_layers_and_unknown_platforms_are_copied(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("odd")
    graph.image("empty", layers=[graph.empty_blob(), graph.layer("real")])
    graph.image("twice", twice=True)
    graph.image("none", layers=[])
    graph.platforms("strange", platforms=("plan9/mips", "unknown/unknown"))
    graph.image("docker", oci=False)
    graph.platforms("list", oci=False)
    push(source, "app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)


def test_foreign_layers_are_not_copied(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("foreign")
    for oci in (True, False):
        foreign = graph.foreign_layer("https://layers.invalid/base.tar.gz", name=f"foreign-{oci}", oci=oci)
        graph.image(f"oci-{oci}".lower(), layers=[foreign, graph.layer(f"own-{oci}", oci=oci)], oci=oci)
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert len(graph.blobs) == target.counts()["PUT upload"]


def test_a_layer_that_is_foreign_for_only_one_platform_is_copied(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", checks_references=False)
    graph = Graph("both")
    regular = graph.layer("base")
    foreign = Made(OCI_FOREIGN, regular.digest, regular.size, {"urls": ["https://layers.invalid/base.tar.gz"]})
    graph.index("v1", children=[graph.image(layers=[layer], label=layer.media_type) for layer in (foreign, regular)])
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert target.has_blob("app", regular.digest)
    assert_synced(source, target)


def test_a_signed_schema_1_manifest_keeps_its_digest_if_the_target_accepts_it(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("schema1")
    old = graph.schema1("v1")
    graph.image("v2")
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    there = target.manifest("app", "v1")
    assert (graph.manifests[old.digest].data, schema1.MEDIA_TYPE) == (there.body, there.headers["content-type"])
    digests = {image["target"].rpartition(":")[2]: image["digest"] for image in mirror_run.report()["images"]}
    assert graph.tags == digests
    target.mark()
    mirror_run.sync()
    assert [] == target.writes()


def test_schema_1_is_refused_if_the_configuration_says_so(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("schema1")
    graph.schema1("v1")
    graph.image("v2")
    source.load("app", graph)
    pair(mirror_run, source, target, defaults={"schema1": "fail"})
    ran = mirror_run.sync(expect=1)
    assert "schema 1" in ran.text
    assert ["v2"] == target.tags("app")


def test_a_media_type_that_the_target_refuses_fails_only_that_image(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    docker = ("application/vnd.docker.distribution.manifest.v2+json",)
    source, target = scripted("source"), scripted("target", media_types=docker)
    graph = Graph("types")
    graph.image("docker", oci=False)
    graph.image("oci")
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=1)
    assert ["docker"] == target.tags("app")
    assert [f"{source.host}/app:oci"] == mirror_run.failed()


def test_a_tag_that_is_immutable_on_the_target_is_a_conflict(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target", immutable_tags=True)
    graph, old = Graph("new"), Graph("old")
    graph.image("v1")
    graph.image("v2")
    old.image("v1", label="old")
    source.load("app", graph)
    target.load("app", old)
    pair(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert {"v1": "conflict", "v2": "copied"} == {
        name.rpartition(":")[2]: result for name, result in mirror_run.results().items()
    }
    assert old.tags["v1"] == target.storage.repositories["app"].tags["v1"]


def test_a_deep_sync_restores_content_that_the_target_lost_below_equal_tags(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("deep")
    graph.platforms("v1")
    graph.platforms("v2")
    push(source, "app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    blob = next(iter(graph.blobs))
    child = next(digest for digest in graph.manifests if digest not in graph.tags.values())
    target.drop_blob("app", blob)
    target.drop_manifest("app", child)
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    target.mark()
    source.mark()
    mirror_run.sync("--deep")
    assert_synced(source, target)
    assert_whole(target)
    assert (1, 1) == (source.counts()["GET blob"], target.counts()["PUT upload"])


@pytest.mark.parametrize("features", [{}, {"sparse_indexes": True}, {"checks_references": False}], ids=str)
def test_a_child_manifest_removed_by_garbage_collection_is_copied_with_the_next_index(
    scripted: ScriptedFactory, mirror_run: MirrorTool, features: dict[str, bool]
) -> None:
    source, target = scripted("source"), scripted("target", **features)
    graph = Graph("clean-up")
    shared = graph.image(platform="linux/amd64", label="shared")
    graph.index("v1", children=[shared, graph.image(platform="linux/arm64", label="old")])
    source.load("app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    del target.storage.repositories["app"].manifests[shared.digest]
    graph.index("v2", children=[shared, graph.image(platform="linux/arm64", label="new")])
    source.load("app", graph)
    mirror_run.sync()
    assert "copied" == mirror_run.results()[f"{target.host}/app:v2"]
    assert [] == walk_tag(target, "app", "v2").problems


def test_child_manifests_are_checked_whatever_the_state_says(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target", sparse_indexes=True)
    graph = loaded(source, "v1")
    pair(mirror_run, source, target)
    mirror_run.sync()
    graph.platforms("v2")
    source.load("app", graph)
    [file] = mirror_run.state.rglob("state.sqlite3")
    with State.open(file.parent, warn=pytest.fail) as state:
        everything = [Digest(digest) for digest in (*graph.blobs, *graph.manifests)]
        state.record_image_blobs(f"{target.host}/app", Digest(graph.tags["v1"]), everything)
    mirror_run.sync()
    assert_synced(source, target)
    assert_whole(target)


def test_a_blob_of_a_wrong_size_on_the_target_is_an_error(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("short")
    graph.image("v1", layers=[graph.layer("only")])
    push(source, "app", graph)
    push(target, "app", graph)
    layer = max(graph.blobs, key=lambda digest: len(graph.blobs[digest]))
    target.truncate_blob(layer, 100)
    pair(mirror_run, source, target)
    mirror_run.sync("--deep", expect=3)
    assert "size_mismatch" in {image["error"]["code"] for image in mirror_run.report()["images"]}


def test_unusual_but_valid_json_is_copied_byte_for_byte(
    registry_factory: RegistryFactory, source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("bytes")
    child = graph.image(label="child")
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child.json()], "vnd.example": {"é": 1.50}}
    graph.raw(oddly(document), OCI_INDEX, "v1")
    layer = graph.blob(b"plain", OCI_LAYER)
    graph.image("v2", layers=[layer], annotations={"key": "\u202evalue"})
    push(source, "app", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    for tag, digest in graph.tags.items():
        assert graph.manifests[digest].data == target.manifest("app", tag).body
