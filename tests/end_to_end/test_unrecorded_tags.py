"""`plan` and `prune --plan` print how many tags on the targets no sync with this configuration wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.prune_scenarios import small_image
from tests.support.tool import MirrorTool, Ran

SAYS = "not written by a sync with this configuration"


def put(registry: ScriptedRegistry, repository: str, *tags: str) -> Graph:
    """Put an image for each tag into a repository."""
    graph = Graph(f"{registry.host} {repository} {tags}")
    for tag in tags:
        small_image(graph, tag)
    registry.load(repository, graph)
    return graph


def flat(ran: Ran) -> str:
    return " ".join(ran.out.split())


@pytest.fixture
def registries(scripted: ScriptedFactory) -> tuple[ScriptedRegistry, ScriptedRegistry]:
    return scripted("source"), scripted("target")


def planned(tool: MirrorTool) -> tuple[Ran, Any, Ran, Any]:
    """Run `prune --plan` and `plan`. Return the output of both, and the unrecorded tags in their documents."""
    file = tool.folder / "plan.json"
    prune, plan = tool("prune", tool.config_file, "--plan", file), tool("plan", tool.config_file)
    document = json.loads(tool("plan", tool.config_file, "--json").out)
    return prune, json.loads(file.read_text())["unrecorded_tags"], plan, document["unrecorded_tags"]


@pytest.mark.parametrize("shards", [0, 2])
def test_the_tags_of_others_are_counted_for_each_target_of_the_configuration(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool, shards: int
) -> None:
    source, target = registries
    for name in ("team/a", "team/b", "app"):
        put(source, name, "v1", "v2")
    put(target, "hub/a", "x", "y", "sha256-" + "a" * 64)
    put(target, "hub/b", "z")
    put(target, "copy", "w")
    mirrors = [
        {"source": f"{source.host}/team/*", "targets": [f"{target.host}/hub/*"]},
        {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]},
    ]
    mirror_run.config(mirrors, source, target)
    for arguments in [["--shard", f"{number}/{shards}"] for number in range(shards)] or [[]]:
        mirror_run.sync(*arguments)
    prune, in_file, plan, in_json = planned(mirror_run)
    for ran in (prune, plan):
        assert f"{target.host}/copy: 1 tag was {SAYS}" in flat(ran)
        assert f"{target.host}/hub/*: 3 tags in 2 repositories were {SAYS}" in flat(ran)
    wanted = [
        {"target": f"{target.host}/copy", "repositories": 1, "tags": 1},
        {"target": f"{target.host}/hub/*", "repositories": 2, "tags": 3},
    ]
    assert [wanted, wanted] == [in_file, in_json]


def test_tags_that_another_configuration_wrote_count_and_own_tags_do_not(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = registries
    put(source, "app", "v1", "v2", "v3")
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}
    other = mirror_run.folder / "other.yaml"
    mirror_run.config([{**mirror, "tags": ["v1"]}], source, target, file=other)
    assert 0 == mirror_run("sync", other).code
    mirror_run.config([{**mirror, "tags": {"exclude": ["v1"]}}], source, target)
    mirror_run.sync()
    del source.create("app").tags["v3"]  # it may be deleted, and is a tag of this configuration
    prune, in_file, plan, in_json = planned(mirror_run)
    assert f"{target.host}/copy: delete 1 of 2 tags" in flat(prune)
    assert [True, True] == [f"{target.host}/copy: 1 tag was {SAYS}" in flat(ran) for ran in (prune, plan)]
    assert [[1], [1]] == [[one["tags"] for one in found] for found in (in_file, in_json)]


def test_nothing_is_printed_if_all_tags_are_recorded_and_a_plan_contacts_no_target_for_it(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = registries
    put(source, "app", "v1")
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/copy"]}], source, target)
    mirror_run.sync()
    prune, in_file, plan, in_json = planned(mirror_run)
    assert ([], []) == (in_file, in_json)
    assert SAYS not in flat(prune) + flat(plan)
    put(target, "copy", "mine")
    mirror_run.config([{"source": f"{source.host}/app:v1", "targets": [f"{target.host}/copy"]}], source, target)
    target.mark()
    assert SAYS not in mirror_run("plan", mirror_run.config_file).out
    assert ["HEAD"] == [seen.method for seen in target.requests()]


def test_a_target_whose_tags_cannot_be_listed_is_left_out(
    registries: tuple[ScriptedRegistry, ScriptedRegistry], mirror_run: MirrorTool
) -> None:
    source, target = registries
    for name in ("a", "b"):
        put(source, name, "v1")
        put(target, name, "old")
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in ("a", "b")]
    mirror_run.config(mirrors, source, target)
    target.fault("GET tags", repository="a", status=403, times=1000)
    file = mirror_run.folder / "plan.json"
    ran = mirror_run("prune", mirror_run.config_file, "--plan", file)
    assert 0 == ran.code
    found = json.loads(file.read_text())["unrecorded_tags"]
    assert [{"target": f"{target.host}/b", "repositories": 1, "tags": 1}] == found
