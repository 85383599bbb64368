"""Hints for tags of exclusive targets are used only if no run with another state has written to the target."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import pair
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool


def exclusive(scripted: ScriptedFactory, tool: MirrorTool) -> tuple[ScriptedRegistry, ScriptedRegistry, Graph, str]:
    """The registries, the images of the source, and the image that its `v1` may move to."""
    source, target, graph = scripted("source"), scripted("target"), Graph()
    graph.image("v1", label="old")
    new = graph.image(label="new").digest
    source.load("app", graph)
    pair(tool, source, target, registries={target.host: {"exclusive": True}})
    return source, target, graph, new


def tag(registry: ScriptedRegistry) -> str:
    return registry.storage.repositories["app"].tags["v1"]


def sync(tool: MirrorTool, shards: int) -> None:
    for number in range(shards):
        tool.sync("--shard", f"{number}/{shards}")
    if not shards:
        tool.sync()


@pytest.mark.parametrize(("mine", "others"), [(0, 2), (1, 0), (1, 2)])
def test_a_tag_of_an_exclusive_target_is_requested_after_a_run_with_another_number_of_shards(
    mine: int, others: int, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, graph, new = exclusive(scripted, mirror_run)
    sync(mirror_run, mine)
    source.storage.repositories["app"].tags["v1"] = new
    sync(mirror_run, others)
    assert new == tag(target)
    source.storage.repositories["app"].tags["v1"] = graph.tags["v1"]
    assert 10 == mirror_run("plan", mirror_run.config_file, "--exit-code").code
    sync(mirror_run, mine)
    assert graph.tags["v1"] == tag(target)
    target.mark()
    sync(mirror_run, mine)
    assert {} == target.counts(), "the tag is believed again"


def test_a_tag_of_an_exclusive_target_in_a_state_of_version_0_1_0_is_requested(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """Version 0.1.0 recorded a tag after its PUT: if it was killed in between, its state has the old digest."""
    _, target, graph, new = exclusive(scripted, mirror_run)
    mirror_run.sync()
    target.load("app", graph)
    target.storage.repositories["app"].tags["v1"] = new
    with closing(sqlite3.connect(mirror_run.state / "state.sqlite3")) as database:
        database.executescript("DROP TABLE answered_by_v2; DROP TABLE writers; PRAGMA user_version = 1")
        database.execute("INSERT INTO unfinished VALUES (?)", (f"{target.host}/app",))
        database.commit()
    mirror_run.sync()
    assert graph.tags["v1"] == tag(target)
