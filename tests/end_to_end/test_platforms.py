"""`platforms`: a smaller index with only these platforms, and nothing else is requested."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import AnyRegistry
from tests.registries.real import RealRegistry
from tests.support.images import Graph, Made
from tests.support.oracle import assert_whole, skopeo, walk_tag
from tests.support.seeding import push
from tests.support.tool import MirrorTool

SIX = ("linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "linux/ppc64le", "linux/s390x")
TWO = ["linux/amd64", "linux/arm64"]


def attestation(graph: Graph, image: Made) -> Made:
    """Make the attestation manifest that BuildKit adds for an image."""
    made = graph.artifact(kind="application/vnd.in-toto+json", texts=[f"provenance of {image.digest}".encode()])
    annotations = {
        "vnd.docker.reference.digest": image.digest,
        "vnd.docker.reference.type": "attestation-manifest",
    }
    return replace(made, extra={"annotations": annotations, "platform": {"architecture": "unknown", "os": "unknown"}})


def buildx(*tags: str, name: str = "buildx") -> tuple[Graph, dict[str, tuple[Made, Made]]]:
    """Make an index of six platforms with an attestation each. Return the images and attestations by platform."""
    graph = Graph(name)
    made = {}
    for platform in SIX:
        image = graph.image(platform=platform, label=name)
        made[platform] = image, attestation(graph, image)
    children = [one for pair in made.values() for one in pair]
    graph.index(*(tags or ("v1",)), children=children)
    return graph, made


def configure(tool: MirrorTool, source: AnyRegistry, target: AnyRegistry, **keys: Any) -> None:
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/app"], "platforms": TWO, **keys}
    tool.config([mirror], source, target)


def digests_below(body: bytes) -> list[str]:
    return [entry["digest"] for entry in json.loads(body)["manifests"]]


def assert_pullable(registry: AnyRegistry, folder: Path, *architectures: str) -> None:
    """Check that skopeo inspects and pulls `app:v1` for each architecture."""
    name = f"docker://{registry.host}/app:v1"
    for architecture in architectures:
        override = f"--override-arch={architecture}"
        assert architecture == json.loads(skopeo(override, "inspect", "--tls-verify=false", name))["Architecture"]
        skopeo(override, "copy", "--src-tls-verify=false", name, f"dir:{folder / architecture}")


def image_entries(tool: MirrorTool) -> dict[str, Mapping[str, Any]]:
    return {image["target"].rpartition(":")[2]: image for image in tool.report()["images"]}


def test_two_of_six_platforms_are_copied_with_their_attestations_and_nothing_else_is_requested(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    graph, made = buildx("v1", "latest")
    push(source, "app", graph)
    configure(mirror_run, source, target)
    source.mark()
    mirror_run.sync()
    kept = [one.digest for platform in ("linux/amd64", "linux/arm64/v8") for one in made[platform]]
    there = target.manifest("app", "v1")
    assert kept == digests_below(there.body)
    assert_whole(target)
    references = {seen.reference for seen in source.requests()}
    others = {
        one.digest for platform in SIX if platform not in ("linux/amd64", "linux/arm64/v8") for one in made[platform]
    }
    assert set() == references & others
    assert len(kept) + 1 == source.counts()["GET manifest"], "the index once, although two tags have it"
    assert len(kept) + 2 == target.counts()["PUT manifest"]
    digest = f"sha256:{hashlib.sha256(there.body).hexdigest()}"
    entry = image_entries(mirror_run)["v1"]
    assert (digest, graph.tags["v1"]) == (entry["digest"], entry["source_digest"])
    assert_pullable(target, tmp_path, "amd64", "arm64")


def test_a_second_run_reads_and_writes_nothing_and_a_run_without_state_has_the_same_result(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph, _ = buildx()
    graph.image("other", platform="linux/s390x")
    graph.image("single", platform="linux/amd64")
    push(source, "app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    first = target.manifest("app", "v1").body
    assert {"v1": "copied", "other": "skipped", "single": "copied"} == {
        tag: entry["result"] for tag, entry in image_entries(mirror_run).items()
    }
    for registry in (source, target):
        registry.mark()
    ran = mirror_run.sync()
    assert "images: 2 up to date, 1 skipped; 7 requests" in ran.out
    assert 0 == source.counts()["GET manifest"] + source.counts()["GET blob"] + target.counts()["GET manifest"]
    assert [] == target.writes()
    assert {"v1": "up-to-date", "other": "skipped", "single": "up-to-date"} == {
        tag: entry["result"] for tag, entry in image_entries(mirror_run).items()
    }
    shutil.rmtree(mirror_run.state)
    mirror_run.sync()
    assert first == target.manifest("app", "v1").body
    assert [] == target.writes()


def test_an_image_of_another_platform_is_skipped_and_the_report_says_why(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("single")
    graph.image("other", "also", platform="linux/arm/v7")
    graph.artifact("chart")
    source.load("app", graph)
    configure(mirror_run, source, target)
    ran = mirror_run.sync()
    assert "2 skipped" in ran.out
    assert ["chart"] == target.tags("app")
    entry = image_entries(mirror_run)["other"]
    assert ("skipped", "not_found", False) == (entry["result"], entry["error"]["code"], entry["error"]["retryable"])
    assert "linux/arm/v7" in entry["error"]["message"]
    assert 1 == source.counts()["GET blob"] - 2, "one config for both tags, and the blobs of the chart"
    planned = mirror_run("plan", mirror_run.config_file, "--exit-code")
    assert (0, "skipped: 2 images for other platforms") == (planned.code, planned.out.splitlines()[0])


def test_an_index_without_the_platforms_fails_alone_and_the_message_lists_those_that_it_has(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("lacking")
    graph.platforms("old", platforms=("linux/386", "windows/amd64"))
    graph.platforms("v1")
    source.load("app", graph)
    configure(mirror_run, source, target)
    ran = mirror_run.sync(expect=1)
    assert "has none of the platforms linux/amd64, linux/arm64; it has linux/386, windows/amd64" in ran.text
    assert ["v1"] == target.tags("app")
    assert "not_found" == image_entries(mirror_run)["old"]["error"]["code"]


def test_platforms_that_change_are_copied_by_the_next_run(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph, made = buildx()
    source.load("app", graph)
    configure(mirror_run, source, target, platforms=["linux/amd64"])
    mirror_run.sync()
    configure(mirror_run, source, target, platforms=["linux/amd64", "linux/s390x"])
    mirror_run.sync()
    kept = [one.digest for platform in ("linux/amd64", "linux/s390x") for one in made[platform]]
    assert kept == digests_below(target.manifest("app", "v1").body)
    configure(mirror_run, source, target, platforms=list(SIX))
    mirror_run.sync()
    assert graph.tags["v1"] == walk_tag(target, "app", "v1").digest, "the original, because nothing is left out"


def test_plan_and_verify_know_the_platforms_also_without_state(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("known")
    images = {platform: graph.image(platform=platform, size=20_000) for platform in SIX}
    graph.index("v1", children=list(images.values()))
    graph.image("other", platform="linux/s390x")
    source.load("app", graph)
    configure(mirror_run, source, target)
    kept = [json.loads(graph.manifests[images[platform].digest].data) for platform in ("linux/amd64", "linux/arm64/v8")]
    size = sum(blob["size"] for image in kept for blob in (image["config"], *image["layers"]))
    planned = mirror_run("plan", mirror_run.config_file)
    assert "to copy: 1 new" in planned.out
    assert f"at most {size / 1024:.0f} KiB to read" in planned.out
    mirror_run.sync()
    shutil.rmtree(mirror_run.state)
    source.mark()
    verified = mirror_run("verify", mirror_run.config_file)
    assert (0, True) == (verified.code, "verified: 1 image" in verified.out), verified
    assert 2 == source.counts()["GET manifest"], "the index and the other image; no child is read from the source"
    del target.storage.repositories["app"].manifests[images["linux/amd64"].digest]
    assert 1 == mirror_run("verify", mirror_run.config_file).code
    mirror_run.sync("--deep")
    assert 0 == mirror_run("verify", "--deep", mirror_run.config_file).code
    assert_whole(target)


def test_an_immutable_tag_is_compared_after_its_platforms_have_been_selected(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, _ = buildx()
    source.load("app", graph)
    configure(mirror_run, source, target, tags={"immutable": ["v.*"]})
    mirror_run.sync()
    shutil.rmtree(mirror_run.state)
    mirror_run.sync()
    assert ["up-to-date"] == list(mirror_run.results().values())
    configure(mirror_run, source, target, tags={"immutable": ["v.*"]}, platforms=["linux/amd64"])
    assert 3 == mirror_run("plan", mirror_run.config_file).code
    mirror_run.sync(expect=3)
    assert ["conflict"] == list(mirror_run.results().values())


def test_the_platform_of_a_converted_image_is_that_of_the_result(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("converted")
    graph.schema1("v1")
    source.load("app", graph)
    configure(mirror_run, source, target, schema1="convert", platforms=["linux/arm64"])
    mirror_run.sync()
    assert ["skipped"] == list(mirror_run.results().values())
    source.mark()
    mirror_run.sync()
    assert 0 == source.counts()["GET manifest"] + source.counts()["GET blob"]
    configure(mirror_run, source, target, schema1="convert", platforms=["linux/amd64"])
    mirror_run.sync()
    assert_whole(target)
    source.mark()
    mirror_run.sync()
    assert 0 == source.counts()["GET manifest"] + source.counts()["GET blob"]
    assert ["up-to-date"] == list(mirror_run.results().values())
