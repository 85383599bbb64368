"""The oracle detects every error and nothing else. It walks scripted registries, whose content is changed at will."""

from __future__ import annotations

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph, Made
from tests.support.oracle import Snapshot, assert_equal, assert_invariants, assert_whole, snapshot, walk_tag


def held(registry: ScriptedRegistry, label: str = "one", repository: str = "app") -> tuple[Graph, Made]:
    """Put a graph with the tag v1 into the registry; return the graph and its root."""
    graph = Graph(label)
    root = graph.platforms("v1")
    graph.index("nested", children=[root])
    registry.load(repository, graph)
    return graph, root


def test_a_walk_finds_all_objects(scripted: ScriptedFactory) -> None:
    registry = scripted()
    graph, root = held(registry)
    walk = walk_tag(registry, "app", "nested")
    assert (graph.tags["nested"], []) == (walk.digest, walk.problems)
    assert {*graph.blobs, *graph.manifests} == walk.objects
    assert {*graph.blobs, *graph.manifests} - {graph.tags["nested"]} == walk_tag(registry, "app", "v1").objects
    assert root.digest == walk_tag(registry, "app", "v1").digest


def test_a_missing_tag_is_a_problem(scripted: ScriptedFactory) -> None:
    registry = scripted()
    held(registry)
    walk = walk_tag(registry, "app", "v2")
    assert (None, ["app:v2 is 404"]) == (walk.digest, walk.problems)


def test_missing_truncated_and_wrong_objects_are_problems_of_every_tag_above_them(scripted: ScriptedFactory) -> None:
    registry = scripted()
    graph, _ = held(registry)
    home = registry.storage.repositories["app"]
    one, two, three, *_ = graph.blobs
    child = next(iter(graph.manifests))
    home.blobs.discard(one)
    registry.storage.bytes[two] = registry.storage.bytes[two][:-1]
    registry.storage.bytes[three] = registry.storage.bytes[three][:-1] + b"?"
    found = snapshot(registry)
    wanted = {f"blob app@{one} is 404", f"blob app@{two} has other bytes", f"blob app@{three} has other bytes"}
    assert wanted == set(found.problems)
    assert 6 == len(found.problems)
    del home.manifests[child]
    assert f"manifest app@{child} is 404" in walk_tag(registry, "app", "v1").problems


def test_wrong_bytes_or_a_wrong_digest_header_of_a_manifest_are_problems(scripted: ScriptedFactory) -> None:
    registry = scripted()
    graph, _ = held(registry)
    first, second = list(graph.manifests)[:2]
    home = registry.storage.repositories["app"]
    home.manifests[first] = home.manifests[second]
    assert [f"manifest app@{first} has other bytes"] == walk_tag(registry, "app", "v1").problems
    home.tags["wrong"] = first
    assert "is said to be" in walk_tag(registry, "app", "wrong").problems[0]


def test_foreign_layers_may_be_missing(scripted: ScriptedFactory) -> None:
    registry, graph = scripted(), Graph("foreign")
    graph.image("v1", layers=[graph.foreign_layer("https://example.com/x"), graph.layer()])
    registry.load("app", graph)
    assert [] == assert_whole(registry).problems


def test_equal_means_the_same_bytes_and_media_type_and_complete(scripted: ScriptedFactory) -> None:
    source, target = scripted(), scripted()
    graph, _ = held(source)
    held(target, repository="copy")
    assert_equal(source, "app", target, "copy")
    home = target.storage.repositories["copy"]
    lost = next(iter(graph.blobs))
    home.blobs.discard(lost)
    with pytest.raises(AssertionError, match=f"blob copy@{lost} is 404"):
        assert_equal(source, "app", target, "copy")
    home.blobs.add(lost)
    home.tags["v1"] = home.tags["nested"]
    with pytest.raises(AssertionError, match="the source has"):
        assert_equal(source, "app", target, "copy", tags=["v1"])
    del home.tags["v1"]
    with pytest.raises(AssertionError, match="copy:v1 is 404"):
        assert_equal(source, "app", target, "copy")
    with pytest.raises(AssertionError, match="has no tags to compare"):
        assert_equal(source, "nothing", target)


def changed(scripted: ScriptedFactory, label: str) -> tuple[Snapshot, Snapshot, Snapshot]:
    """Return a target before and after `label` changed its v1, and a source that made the change from `new`."""
    target, source = scripted(), scripted()
    held(target, "old")
    before = snapshot(target)
    held(target, label)
    held(source, "new")
    return before, snapshot(target), snapshot(source)


def test_a_tag_may_keep_its_old_digest_or_get_one_of_the_source(scripted: ScriptedFactory) -> None:
    before, after, source = changed(scripted, "new")
    assert_invariants(before, after, source=source)
    assert_invariants(before, before, source=source)
    with pytest.raises(AssertionError, match="I2"):
        assert_invariants(before, after, {("app", "v1"): ["sha256:another"]})
    assert_invariants(before, after, {tag: [digest] for tag, digest in after.tags.items()})


def test_unknown_lost_and_broken_tags_and_unknown_objects_are_distinguished(scripted: ScriptedFactory) -> None:
    before, after, source = changed(scripted, "strange")
    with pytest.raises(AssertionError, match="I2"):
        assert_invariants(before, after, source=source)
    with pytest.raises(AssertionError, match="I3"):
        assert_invariants(before, Snapshot(), source=source)
    with pytest.raises(AssertionError, match="I1"):
        assert_invariants(before, Snapshot(problems=["x"]), source=source)
    allowed = {tag: [digest] for tag, digest in after.tags.items()}
    with pytest.raises(AssertionError, match="I4"):
        assert_invariants(before, after, allowed, source)
