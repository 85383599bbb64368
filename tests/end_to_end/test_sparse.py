"""`index: sparse`: an index keeps its bytes, and manifests of other platforms are left out."""

from __future__ import annotations

import json
import shutil

from tests.conftest import ScriptedFactory
from tests.end_to_end.test_platforms import TWO, buildx, configure, image_entries
from tests.end_to_end.worlds import pair
from tests.registries.faults import FOREVER
from tests.registries.real import RealRegistry
from tests.support.oracle import assert_whole
from tests.support.seeding import push
from tests.support.tool import MirrorTool


def test_a_sparse_index_keeps_its_bytes_and_has_only_the_platforms(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", sparse_indexes=True)
    graph, made = buildx("v1", "latest")
    source.load("app", graph)
    configure(mirror_run, source, target, index="sparse")
    mirror_run.sync()
    kept = {one.digest for platform in ("linux/amd64", "linux/arm64/v8") for one in made[platform]}
    assert {graph.tags["v1"], *kept} == set(target.storage.repositories["app"].manifests)
    assert graph.manifests[graph.tags["v1"]].data == target.manifest("app", "v1").body
    others = {one.digest for pair in made.values() for one in pair} - kept
    assert set() == {seen.reference for seen in source.requests()} & others
    assert "source_digest" not in image_entries(mirror_run)["v1"]
    for registry in (source, target):
        registry.mark()
    mirror_run.sync()
    assert 0 == source.counts()["GET manifest"]
    assert [] == target.writes()
    verified = mirror_run("verify", mirror_run.config_file)
    assert (0, True) == (verified.code, "verified: 2 images" in verified.out)
    del target.storage.repositories["app"].manifests[made["linux/amd64"][0].digest]
    assert 1 == mirror_run("verify", mirror_run.config_file).code


def test_platforms_that_were_left_out_are_copied_later_although_the_tag_has_the_same_digest(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", sparse_indexes=True)
    graph, _ = buildx()
    source.load("app", graph)
    repository = target.create("app")
    for platforms, count in ((["linux/amd64"], 3), (["linux/amd64", "linux/s390x"], 5)):
        configure(mirror_run, source, target, index="sparse", platforms=platforms)
        mirror_run.sync()
        assert count == len(repository.manifests)
        target.mark()
        mirror_run.sync()
        assert [] == target.writes(), "the next run has nothing to do"
    pair(mirror_run, source, target)
    planned = mirror_run("plan", mirror_run.config_file)
    assert "to copy: 0 new, 1 changed" in planned.out
    mirror_run.sync()
    assert 13 == len(repository.manifests)
    assert_whole(target)
    target.mark()
    mirror_run.sync()
    assert 0 == target.counts()["HEAD blob"], "the next run takes the image for complete"
    assert [] == target.writes()


def test_a_sparse_image_whose_response_was_lost_does_not_count_as_complete(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", sparse_indexes=True)
    graph, _ = buildx()
    source.load("app", graph)
    target.fault("PUT manifest", reference="v1", after=True, status=401, times=FOREVER)
    configure(mirror_run, source, target, index="sparse")
    mirror_run.sync(expect=1)
    assert ["v1"] == target.tags("app")
    target.faults.clear()
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_whole(target)


def test_without_state_verify_finds_what_a_sparse_target_lacks_and_a_deep_sync_copies_it(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", sparse_indexes=True)
    graph, _ = buildx()
    source.load("app", graph)
    configure(mirror_run, source, target, index="sparse")
    mirror_run.sync()
    shutil.rmtree(mirror_run.state)
    pair(mirror_run, source, target)
    mirror_run.sync()
    verified = mirror_run("verify", mirror_run.config_file)
    assert 1 == verified.code
    assert "mirror sync --deep" in verified.out
    mirror_run.sync("--deep")
    assert_whole(target)


def test_a_target_that_does_not_accept_sparse_images_is_asked_once(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph, _ = buildx()
    for number in range(6):
        graph.platforms(f"other-{number}", platforms=("linux/amd64", "linux/s390x"))
    graph.platforms("whole")
    push(source, "app", graph)
    configure(mirror_run, source, target, index="sparse")
    ran = mirror_run.sync(expect=1)
    assert "does not accept an index that lists manifests that the repository does not have" in ran.text
    assert "set `index: rewrite`" in ran.text
    assert ["whole"] == target.tags("app"), "nothing was left out of it"
    refused = [seen for seen in target.requests() if "PUT manifest" == seen.kind and 400 <= seen.status]
    assert 1 == len(refused)
    assert {"failed"} == {entry["result"] for tag, entry in image_entries(mirror_run).items() if tag != "whole"}


def test_layouts_and_bundles_carry_sparse_images_and_an_import_copies_them_as_they_are(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", sparse_indexes=True)
    graph, made = buildx()
    source.load("app", graph)
    places = {"layout": f"oci:{mirror_run.folder}/layout", "bundle": f"{mirror_run.folder}/bundle.tar"}
    for number, (name, place) in enumerate(places.items()):
        export = {"source": f"{source.host}/app", "targets": [place], "platforms": ["linux/amd64"], "index": "sparse"}
        mirror_run.config([export], source)
        mirror_run.sync()
        verified = mirror_run("bundle", "verify", place.removeprefix("oci:"))
        assert 0 == verified.code, verified
        assert "1 image has only some of the platforms" in verified.out
        if name == "layout":
            assert 0 == mirror_run("verify", mirror_run.config_file).code
        inventory = json.loads(mirror_run("inventory", place.removeprefix("oci:")).out)
        assert {graph.tags["v1"]: ["linux/amd64"]} == inventory["repositories"]["app"]["platforms"]
        assert 3 == len(inventory["manifests"])
        imports = {"source": f"{place}:app", "targets": [f"{target.host}/import-{number}"]}
        mirror_run.config([imports], target)
        mirror_run.sync()
        repository = target.storage.repositories[f"import-{number}"]
        assert {graph.tags["v1"], *(one.digest for one in made["linux/amd64"])} == set(repository.manifests)
        assert 0 == mirror_run("verify", mirror_run.config_file).code
        # More platforms in the store are copied by the next import, although the tag has the same digest.
        mirror_run.config([{**export, "platforms": ["linux/amd64", "linux/s390x"]}], source)
        mirror_run.sync()
        mirror_run.config([imports], target)
        mirror_run.sync()
        assert 5 == len(repository.manifests)
        mirror_run.config([{key: export[key] for key in ("source", "targets")}], source)
        mirror_run.sync()
        verified = mirror_run("bundle", "verify", place.removeprefix("oci:"))
        assert (0, False) == (verified.code, "only some of the platforms" in verified.out)


def test_a_sparse_bundle_that_lacks_one_of_its_platforms_is_incomplete(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source = scripted("source")
    graph, made = buildx()
    source.load("app", graph)
    layout = mirror_run.folder / "layout"
    configure_export = {
        "source": f"{source.host}/app",
        "targets": [f"oci:{layout}"],
        "platforms": TWO,
        "index": "sparse",
    }
    mirror_run.config([configure_export], source)
    mirror_run.sync()
    (layout / "blobs" / "sha256" / made["linux/amd64"][1].digest.removeprefix("sha256:")).unlink()
    verified = mirror_run("bundle", "verify", layout)
    assert (3, True) == (verified.code, "is missing" in verified.out)
    assert 1 == mirror_run("verify", mirror_run.config_file).code
