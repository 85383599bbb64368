"""Tags that the configuration calls immutable are never overwritten, and believed once they were equal."""

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
    """One image with all the tags -> it, and its digest."""
    graph = Graph(label)
    image = graph.image(*TAGS, label=label)
    return graph, image.digest


def tags_of(registry: ScriptedRegistry) -> Counter[str]:
    """How many tags of `app` name each digest."""
    return Counter(registry.storage.repositories["app"].tags.values())


def move(registry: ScriptedRegistry, digest: str) -> None:
    """All tags name `digest` now."""
    registry.storage.repositories["app"].tags = dict.fromkeys(TAGS, digest)


def no_list(registry: ScriptedRegistry) -> None:
    registry.fault("GET tags", status=404, times=FOREVER)


def silent_pages(registry: ScriptedRegistry) -> None:
    """Too few tags on a page for a client to suspect that there are more."""
    registry.features.page, registry.features.link = 15, False


Incomplete = pytest.mark.parametrize("incomplete", [no_list, silent_pages])


@Incomplete
def test_an_immutable_tag_that_the_targets_listing_lacks_is_not_overwritten(
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


def test_an_immutable_tag_is_asked_for_at_the_target_before_it_is_written(
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


def test_an_immutable_tag_that_was_equal_is_believed_by_a_sync_and_asked_for_by_verify_and_deep(
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
    for options in (["--deep"], [], []):  # once found, a conflict is found again until it is resolved
        mirror_run.sync(*options, expect=3)
        assert {"conflict": COUNT} == Counter(mirror_run.results().values())
    assert {digest: COUNT} == tags_of(target)
    move(source, digest)
    mirror_run.sync()
    assert {"up-to-date": COUNT} == Counter(mirror_run.results().values())


@Incomplete
def test_an_immutable_tag_that_was_equal_stays_equal_though_the_listing_lacks_it(
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


def test_an_immutable_tag_that_was_equal_and_is_gone_from_the_target_is_copied_again(
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


def test_an_immutable_tag_that_was_equal_at_one_target_is_not_believed_of_another(
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
