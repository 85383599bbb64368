"""`platforms` together with attachments, image locks, `explain`, and the selection of tags by date."""

from __future__ import annotations

import json

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.test_platforms import SIX, TWO, buildx, configure, digests_below, image_entries
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph, Made, tag_of
from tests.support.tool import MirrorTool

KEPT = ("linux/amd64", "linux/arm64/v8")


def refer(registry: ScriptedRegistry, subject: Made, text: str) -> str:
    """Attach a signature to a manifest at a registry with the referrers API. Return its digest."""
    graph = Graph(text)
    made = graph.artifact(kind="application/vnd.cncf.notary.signature", texts=[text.encode()], subject=subject)
    registry.load("app", graph)
    return made.digest


@pytest.mark.parametrize("index", ["rewrite", "sparse"])
def test_attachments_are_copied_with_the_manifests_that_the_target_gets(
    scripted: ScriptedFactory, mirror_run: MirrorTool, index: str
) -> None:
    source = scripted("source", referrers=True)
    target = scripted("target", referrers=True, sparse_indexes=index == "sparse")
    graph, made = buildx()
    body = graph.manifests[graph.tags["v1"]]
    root = Made(body.media_type, graph.tags["v1"], len(body.data))
    cosign = graph.signature(root).digest
    source.load("app", graph)
    kept, dropped = made["linux/arm64/v8"][0], made["linux/s390x"][0]
    of_root, of_kept = refer(source, root, "of the root"), refer(source, kept, "of a kept child")
    others = {one.digest for platform in SIX if platform not in KEPT for one in made[platform]}
    others.add(refer(source, dropped, "of another child"))
    configure(mirror_run, source, target, index=index, tags=["v1"])
    source.mark()
    mirror_run.sync()
    copied = {one.digest for platform in KEPT for one in made[platform]} | {of_kept}
    with_root = {of_root, cosign, graph.tags["v1"]} if index == "sparse" else set()
    new_root = {image_entries(mirror_run)["v1"]["digest"]}
    assert copied | with_root | new_root == set(target.storage.repositories["app"].manifests)
    assert (f"{tag_of(root)}.sig" in target.tags("app")) == (index == "sparse")
    assert set() == {seen.reference for seen in source.requests()} & others
    # Later attachments are found without the image of the source.
    late = refer(source, kept, "late")
    others.add(refer(source, dropped, "late, of another child"))
    configure(mirror_run, source, target, index=index, tags=["v1"], recheck="0 s")
    for registry in (source, target):
        registry.mark()
    mirror_run.sync()
    image = image_entries(mirror_run)["v1"]
    assert ("copied", 1) == (image["result"], image["referrers"]["copied"])
    assert [late] == [seen.reference for seen in target.writes() if seen.kind == "PUT manifest"]
    assert set() == {seen.reference for seen in source.requests()} & others
    verified = mirror_run("verify", mirror_run.config_file)
    assert 0 == verified.code, verified
    del target.storage.repositories["app"].manifests[late]
    assert 1 == mirror_run("verify", mirror_run.config_file).code


def test_attachments_of_immutable_tags_are_found_although_the_source_may_have_another_index(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True)
    graph, made = buildx()
    same = graph.index("same", children=[graph.image(platform="linux/amd64", label="same")])
    source.load("app", graph)
    tags = {"include": [".*"], "immutable": [".*"]}
    configure(mirror_run, source, target, tags=tags, recheck="0 s")
    mirror_run.sync()
    late = {refer(source, made["linux/amd64"][0], "late"), refer(source, same, "late, of an unchanged index")}
    for registry in (source, target):
        registry.mark()
    mirror_run.sync()
    assert late == {seen.reference for seen in target.writes() if seen.kind == "PUT manifest"}
    assert 2 == source.counts()["HEAD manifest"], "one for each index that the target has"


def test_a_locked_image_is_filtered_and_compared_by_its_digest_at_the_source(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, made = buildx()
    graph.image("other", platform="linux/s390x")
    source.load("app", graph)
    configure(mirror_run, source, target)
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    lock = mirror_run.config_file.with_suffix(".lock")
    moved, _ = buildx("v1", name="moved")
    plan = ("plan", mirror_run.config_file, "--locked", lock, "--exit-code")
    for _ in range(2):
        mirror_run.sync("--locked", lock)
        assert [one.digest for name in KEPT for one in made[name]] == digests_below(target.manifest("app", "v1").body)
        assert (0, f"{lock}: matches the sources") == ((ran := mirror_run(*plan)).code, ran.out.splitlines()[-1])
    source.load("app", moved)
    for registry in (source, target):
        registry.mark()
    mirror_run.sync("--locked", lock)
    assert (0, []) == (source.counts()["GET manifest"], target.writes())
    assert f"v1: locked {graph.tags['v1']}, the source has {moved.tags['v1']}" in mirror_run(*plan).out


@pytest.mark.parametrize("index", ["rewrite", "sparse"])
def test_locked_attachments_of_platforms_that_the_target_does_not_get_are_left_out(
    scripted: ScriptedFactory, mirror_run: MirrorTool, index: str
) -> None:
    source = scripted("source", referrers=True)
    target = scripted("target", referrers=True, needs_subject=True, sparse_indexes=index == "sparse")
    graph = Graph("locked")
    children = [graph.image(platform=platform) for platform in ("linux/amd64", "linux/arm64")]
    root = graph.index("v1", children=children)
    cosign = graph.signature(root)
    source.load("app", graph)
    of_root, of_kept, of_other = (refer(source, one, one.digest) for one in (root, *children))
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "tags": ["v1"]}
    mirror_run.config([mirror], source, target)
    lock = mirror_run.config_file.with_suffix(".lock")
    assert 0 == mirror_run("lock", mirror_run.config_file).code
    source.mark()
    mirror_run.config([{**mirror, "platforms": ["linux/amd64"], "index": index, "recheck": "0 s"}], source, target)
    with_root = {of_root, cosign.digest} if index == "sparse" else set()
    for result in ("copied", "up-to-date"):
        mirror_run.sync("--locked", lock)
        image = image_entries(mirror_run)["v1"]
        assert (result, 1 + len(with_root)) == (image["result"], sum(image["referrers"].values()))
        held = set(target.storage.repositories["app"].manifests)
        assert {image["digest"], children[0].digest, of_kept} | with_root == held
    assert of_other not in {seen.reference for seen in source.requests()}


def test_explain_says_why_an_image_of_another_platform_is_skipped(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, _ = buildx()
    graph.image("other", platform="linux/s390x")
    source.load("app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    for tag, action in (("v1", "skip"), ("other", "skip")):
        ran = mirror_run("explain", mirror_run.config_file, f"{source.host}/app:{tag}", "--json")
        [mirror] = json.loads(ran.out)["mirrors"]
        [found] = mirror["targets"]
        assert (0, graph.tags[tag], action) == (ran.code, mirror["digest"], found["action"])
        assert ("linux/s390x, which is not in `platforms`" in found["reason"]) == (tag == "other")
    ran = mirror_run("explain", mirror_run.config_file, f"{source.host}/app", "--json")
    [mirror] = json.loads(ran.out)["mirrors"]
    assert (0, {"skip": 2}) == (ran.code, mirror["targets"][0]["actions"])


def test_the_selection_by_date_is_the_same_before_and_after_the_platforms_are_known(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("dated")
    graph.image("old", created="2024-01-01T00:00:00Z")
    graph.image("new", created="2025-01-01T00:00:00Z", platform="linux/s390x")
    wanted = graph.image(created="2026-01-01T00:00:00Z")
    first = graph.image(created="2020-01-01T00:00:00Z", platform="linux/s390x")
    graph.index("index", children=[first, wanted])
    source.load("app", graph)
    configure(mirror_run, source, target, tags={"newest": {"count": 2, "by": "created"}}, platforms=TWO[:1])
    for _ in range(2):
        source.mark()
        mirror_run.sync()
        results = {tag: entry["result"] for tag, entry in image_entries(mirror_run).items()}
        assert ({"index", "new"}, "skipped") == (set(results), results["new"])
    assert (0, 0) == (source.counts()["GET manifest"], source.counts()["GET blob"])


def test_a_required_signature_of_an_index_that_is_replaced_does_not_count_and_the_message_says_what_helps(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source", referrers=True), scripted("target", referrers=True, sparse_indexes=True)
    graph = Graph("signed")
    children = [graph.image(platform=platform) for platform in ("linux/amd64", "linux/arm64")]
    graph.signature(graph.index("v1", children=children))
    source.load("app", graph)
    mirror = {
        "source": f"{source.host}/app",
        "targets": [f"{target.host}/app"],
        "tags": ["v1"],
        "platforms": ["linux/amd64"],
        "referrers": {"require": ["signature"]},
    }
    mirror_run.config([mirror], source, target)
    ran = mirror_run.sync(expect=3)
    assert "app:v1 has no signature for the platforms that are copied" in ran.text
    assert "attach it to the image of each platform" in ran.text
    assert "set `index: sparse`" in ran.text
    assert [] == target.writes()
    mirror_run.config([{**mirror, "index": "sparse"}], source, target)
    mirror_run.sync()
    refer(source, children[0], "of the platform")
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
