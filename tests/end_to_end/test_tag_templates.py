"""Targets with other tags than the source: `{tag}` with text around it, and fixed tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool
from tests.support.walks import RegistryView, Walker, disk_view


@pytest.fixture
def graphs() -> dict[str, Graph]:
    made = {}
    for name in ("alpine", "debian"):
        made[name] = Graph(name)
        for tag in ("1", "2"):
            made[name].image(tag, label=f"{name} {tag}", layers=[made[name].layer("base"), made[name].layer(tag)])
    return made


@pytest.fixture
def source(scripted: ScriptedFactory, graphs: dict[str, Graph]) -> ScriptedRegistry:
    registry = scripted("source")
    for name, graph in graphs.items():
        registry.load(f"team/{name}", graph)
    return registry


def digests(registry: ScriptedRegistry, repository: str) -> dict[str, str]:
    """Return the digest of each tag of a repository, each of which must be complete."""
    with registry.client() as client:
        walk = Walker(RegistryView(client), hashing=True)
        found = {
            tag: client.manifest(repository, tag).headers["docker-content-digest"] for tag in client.tags(repository)
        }
        assert [] == [problem for tag, digest in found.items() for problem in walk.problems(repository, tag, digest)]
    return found


def mirror(source: ScriptedRegistry, name: str, *targets: str, **keys: Any) -> dict[str, Any]:
    return {"source": f"{source.host}/{name}", "targets": list(targets), **keys}


def test_two_sources_share_a_repository_under_different_tags(
    source: ScriptedRegistry, scripted: ScriptedFactory, graphs: dict[str, Graph], mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    pinned = graphs["debian"].tags["2"]
    app = f"{target.host}/app"
    mirrors = [
        mirror(source, "team/alpine", f"{app}:{{tag}}-alpine", f"{target.host}/other/alpine"),
        mirror(source, "team/debian", f"{app}:{{tag}}-debian"),
        mirror(source, "team/alpine:1", f"{app}:stable"),
        mirror(source, f"team/debian@{pinned}", f"{app}:pinned"),
    ]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    alpine, debian = graphs["alpine"].tags, graphs["debian"].tags
    expected = {
        **{f"{tag}-alpine": digest for tag, digest in alpine.items()},
        **{f"{tag}-debian": digest for tag, digest in debian.items()},
        "stable": alpine["1"],
        "pinned": pinned,
    }
    assert expected == digests(target, "app")
    assert alpine == digests(target, "other/alpine")
    names = {image["target"]: image["source"] for image in mirror_run.report()["images"]}
    assert f"{source.host}/team/alpine:1" == names[f"{app}:stable"] == names[f"{app}:1-alpine"]
    assert f"{source.host}/team/debian@{pinned}" == names[f"{app}:pinned"]

    for registry in (source, target):
        registry.mark()
    assert 1 == len(mirror_run.sync().out.splitlines())
    assert [] == target.writes()
    assert not source.counts()["GET manifest"]
    assert 0 == mirror_run("verify", mirror_run.config_file).code

    del target.storage.repositories["app"].tags["stable"]
    ran = mirror_run("verify", mirror_run.config_file)
    assert 1 == ran.code
    assert f"{app}:stable" in ran.text
    planned = mirror_run("plan", mirror_run.config_file).text
    assert f"{source.host}/team/alpine -> {app}\n    stable  new" in planned
    mirror_run.sync("--only", f"{source.host}/team/alpine:1")
    assert expected == digests(target, "app")


def test_a_failed_image_can_be_retried_by_its_name_at_the_source(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    mirror_run.config([mirror(source, "team/alpine", f"{target.host}/app:v{{tag}}")], source, target)
    target.fault("PUT manifest", reference="v1", status=400, times=1)
    mirror_run.sync(expect=1)
    assert [f"{source.host}/team/alpine:1"] == mirror_run.failed()
    assert {f"{target.host}/app:v1": "failed", f"{target.host}/app:v2": "copied"} == mirror_run.results()
    mirror_run.sync("--only-from", next(mirror_run.state.rglob("failed.txt")))
    assert {"v1", "v2"} == set(digests(target, "app"))


def test_immutable_patterns_match_the_tag_on_the_target(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    rules = {"immutable": [r"\d-fixed"]}
    app = f"{target.host}/app"
    mirrors = [mirror(source, "team/alpine", f"{app}:{{tag}}-fixed", f"{target.host}/moving", tags=rules)]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    old = digests(target, "app")
    source.mark()
    mirror_run.sync()
    assert 2 == source.counts()["HEAD manifest"], "only for the target whose tags are not immutable"
    changed = Graph("changed")
    changed.image("1", layers=[changed.layer("new")])
    source.load("team/alpine", changed)
    mirror_run.sync("--deep", expect=3)
    assert old == digests(target, "app")
    assert changed.tags["1"] == digests(target, "moving")["1"]
    assert "conflict" == mirror_run.results()[f"{app}:1-fixed"]


def test_a_tag_that_becomes_too_long_fails_alone(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    long = "l" * 120
    graph = Graph("long")
    graph.image(long, layers=[graph.layer("long")])
    source.load("team/alpine", graph)
    app = f"{target.host}/app"
    mirrors = [mirror(source, "team/alpine", f"{app}:{{tag}}-from-alpine", f"{target.host}/plain")]
    mirror_run.config(mirrors, source, target)
    for command in ("plan", "sync", "verify"):
        ran = mirror_run(command, mirror_run.config_file)
        assert 3 == ran.code
        assert "a tag has at most 128 characters" in ran.text
    assert {"1-from-alpine", "2-from-alpine"} == set(digests(target, "app"))
    assert {"1", "2", long} == set(digests(target, "plain"))
    (failed,) = [image for image in mirror_run.report()["images"] if image["result"] == "failed"]
    assert "ref_invalid" == failed["error"]["code"]


def test_layouts_and_bundles_hold_the_new_tags_and_can_be_imported_under_others(
    source: ScriptedRegistry,
    scripted: ScriptedFactory,
    graphs: dict[str, Graph],
    mirror_run: MirrorTool,
    tmp_path: Path,
) -> None:
    target = scripted("target")
    layout, bundle = tmp_path / "layout", tmp_path / "out.tar"
    places = [f"oci:{layout}:x/{{repository}}:{{tag}}-l", f"{bundle}:x/{{repository}}:{{tag}}-b"]
    mirror_run.config([mirror(source, "team/*", *places)], source)
    mirror_run.sync()
    for path, letter in ((layout, "l"), (bundle, "b")):
        view = disk_view(path)
        want = {
            (f"x/{name}", f"{tag}-{letter}"): digest
            for name, graph in graphs.items()
            for tag, digest in graph.tags.items()
        }
        assert want == view.tags()
        walk = Walker(view, hashing=True)
        assert [] == [one for (name, tag), digest in want.items() for one in walk.problems(name, tag, digest)]
        arrive = tmp_path / f"arrive-{letter}.yaml"
        origin = f"oci:{path}:x/alpine:1-l" if letter == "l" else f"{path}:x/alpine:1-b"
        mirror_run.config([{"source": origin, "targets": [f"{target.host}/{letter}:final"]}], target, file=arrive)
        assert 0 == mirror_run("sync", arrive).code
        assert {"final": graphs["alpine"].tags["1"]} == digests(target, letter)
    assert 0 == mirror_run("verify", mirror_run.config_file).code


def test_repositories_that_only_a_catalog_shows_conflict_only_if_their_tags_do(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    m = f"{target.host}/m"
    apart = [
        mirror(source, "team/*", f"{m}/{{repository}}:{{tag}}-a", f"{m}/{{repository}}:{{tag}}-b"),
        mirror(source, "team/debian", f"{m}/alpine:{{tag}}-c"),
    ]
    mirror_run.config(apart, source, target)
    mirror_run.sync()
    assert {f"{tag}-{letter}" for tag in "12" for letter in "abc"} == set(digests(target, "m/alpine"))
    mirror_run.config([apart[0], mirror(source, "team/debian:1", f"{m}/alpine:9-b")], source, target)
    assert 3 == mirror_run("sync", mirror_run.config_file).code
    assert {"target_conflict"} == {
        image["error"]["code"] for image in mirror_run.report()["images"] if image["result"] == "conflict"
    }
    assert "9-b" not in digests(target, "m/alpine")


def test_an_image_gets_a_second_tag_in_its_own_repository_without_a_transfer(
    source: ScriptedRegistry, graphs: dict[str, Graph], mirror_run: MirrorTool
) -> None:
    app = f"{source.host}/team/alpine"
    mirror_run.config([{"source": f"{app}:1", "targets": [f"{app}:stable"]}], source)
    mirror_run.sync()
    assert graphs["alpine"].tags["1"] == digests(source, "team/alpine")["stable"]
    assert ["PUT manifest"] == [seen.kind for seen in source.writes()]
