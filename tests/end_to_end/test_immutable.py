"""Tags that the configuration declares immutable are never overwritten, and are not requested again once they were
equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool

COUNT = 40
TAGS = [f"v{number}" for number in range(COUNT)]


def configure(tool: MirrorTool, source: ScriptedRegistry, *targets: ScriptedRegistry, **keys: Any) -> None:
    mirror = {
        "source": f"{source.host}/app",
        "targets": [f"{target.host}/app" for target in targets],
        "tags": {"immutable": [r"v\d+"]},
    }
    tool.config([{**mirror, **keys}], source, *targets)


def tagged(label: str) -> tuple[Graph, str]:
    """Make one image with all the tags; return it and its digest."""
    graph = Graph(label)
    image = graph.image(*TAGS, label=label)
    return graph, image.digest


def tags_of(registry: ScriptedRegistry) -> Counter[str]:
    """Return how many tags of `app` refer to each digest."""
    return Counter(registry.storage.repositories["app"].tags.values())


def move(registry: ScriptedRegistry, digest: str) -> None:
    """Let all tags refer to `digest`."""
    registry.storage.repositories["app"].tags = dict.fromkeys(TAGS, digest)


def no_list(registry: ScriptedRegistry) -> None:
    registry.fault("GET tags", status=404, times=FOREVER)


def silent_pages(registry: ScriptedRegistry) -> None:
    """Make pages so short that a client does not expect more tags."""
    registry.features.page, registry.features.link = 15, False


Incomplete = pytest.mark.parametrize("incomplete", [no_list, silent_pages])


@Incomplete
def test_an_immutable_tag_missing_from_the_targets_listing_is_not_overwritten(
    incomplete: Callable[[ScriptedRegistry], None], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", tagged("new")[0])
    graph, old = tagged("old")
    target.load("app", graph)
    incomplete(target)
    configure(mirror_run, source, target)
    mirror_run.sync(expect=3)
    assert {"conflict": COUNT} == Counter(mirror_run.results().values())
    assert {old: COUNT} == tags_of(target)
    assert 0 == target.counts()["PUT manifest"]


def test_an_immutable_tag_is_requested_from_the_target_before_it_is_written(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, digest = tagged("new")
    source.load("app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    assert {digest: COUNT} == tags_of(target)
    asked = [seen.kind for seen in target.requests() if seen.reference == "v7"]
    assert ["HEAD manifest", "PUT manifest"] == asked
    assert 0 == source.counts()["HEAD manifest"]


def test_an_equal_immutable_tag_is_skipped_by_sync_and_requested_by_verify_and_deep(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, digest = tagged("new")
    other = graph.image(label="moved").digest
    for registry in (source, target):
        registry.load("app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    move(source, other)
    for registry in (source, target):
        registry.mark()
    mirror_run.sync()
    assert {"GET tags"} == set(source.counts()) == set(target.counts())
    assert 3 == mirror_run("verify", mirror_run.config_file).code
    for options in (["--deep"], [], []):  # a conflict is reported by every run until it is resolved
        mirror_run.sync(*options, expect=3)
        assert {"conflict": COUNT} == Counter(mirror_run.results().values())
    assert {digest: COUNT} == tags_of(target)
    move(source, digest)
    mirror_run.sync()
    assert {"up-to-date": COUNT} == Counter(mirror_run.results().values())


@Incomplete
def test_an_equal_immutable_tag_stays_equal_although_the_listing_lacks_it(
    incomplete: Callable[[ScriptedRegistry], None], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, digest = tagged("new")
    other = graph.image(label="moved").digest
    for registry in (source, target):
        registry.load("app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    move(source, other)
    incomplete(target)
    source.mark()
    mirror_run.sync()
    assert {"up-to-date": COUNT} == Counter(mirror_run.results().values())
    assert ({digest: COUNT}, 0) == (tags_of(target), source.counts()["HEAD manifest"])


def test_an_equal_immutable_tag_that_was_deleted_from_the_target_is_copied_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph, digest = tagged("new")
    for registry in (source, target):
        registry.load("app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    target.storage.repositories.clear()
    mirror_run.sync()
    assert {digest: COUNT} == tags_of(target)


def test_an_immutable_tag_that_is_equal_on_one_target_is_requested_from_another(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, late = scripted("source"), scripted("target"), scripted("late")
    graph, digest = tagged("new")
    other = graph.image(label="moved").digest
    for registry in (source, target, late):
        registry.load("app", graph)
    configure(mirror_run, source, target)
    mirror_run.sync()
    move(source, other)
    configure(mirror_run, source, target, late)
    for _ in range(2):
        mirror_run.sync(expect=3)
        assert {"conflict": COUNT, "up-to-date": COUNT} == Counter(mirror_run.results().values())
    assert {digest: COUNT} == tags_of(late)
