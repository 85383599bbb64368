"""Hosts that are down, and hosts that are both source and target."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from mirror.util.retry_policy import Policy
from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import pair
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.registries.wires import Pipe
from tests.support.images import Graph
from tests.support.oracle import assert_equal, assert_whole
from tests.support.seeding import push, seed
from tests.support.tool import MirrorTool

TAGS = 100  # on two targets: 200 images
IMPATIENT = {"timeouts": {"connect": "1 s", "idle": "1 s"}}


def test_an_unresponsive_target_does_not_delay_the_others(
    source: RealRegistry, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    seeded = seed(source, "app", images=10, tags=TAGS, layers=2)
    well, hole = registry_factory("well"), registry_factory("hole")
    with Pipe(hole.port) as pipe:
        pipe.freeze()
        targets = [f"{pipe.host}/app", f"{well.host}/app"]
        mirrors = [{"source": f"{source.host}/app", "targets": targets}]
        mirror_run.config(mirrors, source, well, registries={pipe.host: {"plain-http": True, **IMPATIENT}})
        ran = mirror_run.sync(expect=1, timeout=50)
        assert seeded.tags == assert_whole(well).tags
        results = mirror_run.results()
        assert {"failed": TAGS, "copied": TAGS} == {
            result: list(results.values()).count(result) for result in ("failed", "copied")
        }
        assert {"failed"} == {result for target, result in results.items() if target.startswith(pipe.host)}
        # One retry budget, and then no further requests.
        assert pipe.connections <= 8
    assert {"timeout"} == {image["error"]["code"] for image in mirror_run.report()["images"] if "error" in image}
    assert sorted(f"{source.host}/app:v{number}" for number in range(TAGS)) == sorted(mirror_run.failed())
    assert ran.seconds < 30


def test_a_target_that_stops_responding_does_not_delay_the_others(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, well, ill = scripted("source"), scripted("well"), scripted("ill")
    graph = Graph("half-way")
    for number in range(30):
        graph.image(f"v{number}")
    source.load("app", graph)
    silent = ill.fault("* manifest", nth=5, times=10_000, stall_after=0)
    for kind in ("* blob", "* upload", "* tags"):
        ill.fault(kind, nth=40, times=10_000, stall_after=0)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{ill.host}/app", f"{well.host}/app"]}]
    mirror_run.config(mirrors, source, well, registries={ill.host: {"plain-http": True, **IMPATIENT}})
    ran = mirror_run.sync(expect=1, timeout=55)
    assert_equal(source, "app", well)
    assert silent.hits
    assert 30 == list(mirror_run.results().values()).count("copied") - _copied_to(ill, mirror_run)
    assert ran.seconds < 40


def _copied_to(registry: ScriptedRegistry, tool: MirrorTool) -> int:
    return sum(1 for name, result in tool.results().items() if name.startswith(registry.host) and result == "copied")


def test_a_source_that_is_down_causes_one_failure_per_repository_and_few_requests(
    target: RealRegistry, mirror_run: MirrorTool, registry_factory: RegistryFactory
) -> None:
    other = registry_factory("other")
    seeded = seed(other, "well", images=2)
    with Pipe(1) as gone:
        gone.stop()
        mirrors = [
            {"source": f"{gone.host}/app-{number}", "targets": [f"{target.host}/app-{number}"]} for number in range(20)
        ]
        mirrors.append({"source": f"{other.host}/well", "targets": [f"{target.host}/well"]})
        mirror_run.config(mirrors, target, other, registries={gone.host: {"plain-http": True}})
        ran = mirror_run.sync(expect=1, timeout=50)
    assert seeded.tags == assert_whole(target).tags
    images = mirror_run.report()["images"]
    assert 20 == sum(1 for image in images if image["result"] == "failed")
    assert gone.host in ran.text
    assert sum(mirror_run.report()["totals"]["requests"].get(gone.host, {}).values()) <= 40
    assert ran.seconds < 30


@pytest.mark.parametrize("mount", [True, False])
def test_one_host_with_one_permit_is_source_and_target_without_a_deadlock(
    source: RealRegistry, mirror_run: MirrorTool, mount: bool
) -> None:
    seed(source, "app", repositories=2, images=3, index=True, layer_size=300_000)
    names = ["app-0", "app-1"]
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{source.host}/copy/{name}"]} for name in names]
    settings = {source.host: {"parallel": 1, "mount": mount}}
    mirror_run.config(mirrors, source, registries=settings, parallel={"images": 4, "downloads": 6, "uploads": 8})
    source.mark()
    mirror_run.sync()
    counts = source.counts(status=201)
    assert mount == bool(counts["POST mount"])
    assert mount == (not counts["PUT upload"])
    for name in names:
        assert_equal(source, name, source, f"copy/{name}")


def test_two_hosts_with_one_permit_each_copy_to_each_other_without_a_deadlock(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    seed(source, "a", images=6, layer_size=300_000, name="a")
    seed(target, "b", images=6, layer_size=300_000, name="b")
    mirrors = [
        {"source": f"{source.host}/a", "targets": [f"{target.host}/a"]},
        {"source": f"{target.host}/b", "targets": [f"{source.host}/b"]},
    ]
    one = {source.host: {"parallel": 1}, target.host: {"parallel": 1}}
    mirror_run.config(mirrors, source, target, registries=one)
    mirror_run.sync()
    assert_equal(source, "a", target)
    assert_equal(target, "b", source)


def test_a_spool_with_space_for_one_blob_serves_three_targets(
    source: RealRegistry, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    seed(source, "app", images=2, layers=2, layer_size=200_000)
    targets = [registry_factory(f"target-{number}") for number in range(3)]
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app" for target in targets]}]
    small: dict[str, Any] = {"spool-max": "300 KiB"}
    mirror_run.config(mirrors, source, *targets, **small)
    mirror_run.sync()
    for target in targets:
        assert_equal(source, "app", target)


def test_several_sources_share_the_layers_on_one_target_host(
    source: RealRegistry, registry_factory: RegistryFactory, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    other = registry_factory("other")
    graph = Graph("shared")
    graph.platforms("v1", size=50_000)
    push(source, "here", graph)
    push(other, "there", graph)
    mirrors = [
        {"source": f"{source.host}/here", "targets": [f"{target.host}/here"]},
        {"source": f"{other.host}/there", "targets": [f"{target.host}/there"]},
    ]
    mirror_run.config(mirrors, source, other, target)
    mirror_run.sync()
    assert_equal(source, "here", target)
    assert_equal(other, "there", target)
    done = target.counts(status=201)
    assert (len(graph.blobs), len(graph.blobs)) == (done["PUT upload"], done["POST mount"])


def test_two_mirrors_may_write_different_tags_of_one_target_repository(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = Graph("one")
    graph.image("v1")
    push(source, "one", graph)
    other = Graph("two")
    other.image("v2")
    push(source, "two", other)
    mirrors = [
        {"source": f"{source.host}/one", "targets": [f"{target.host}/both"], "tags": ["v1"]},
        {"source": f"{source.host}/two", "targets": [f"{target.host}/both"], "tags": ["v2"]},
    ]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    assert {("both", "v1"): graph.tags["v1"], ("both", "v2"): other.tags["v2"]} == assert_whole(target).tags
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())


def test_a_layer_that_a_host_always_refuses_is_retried_once_for_all_repositories(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    names = [f"app-{number}" for number in range(6)]
    for name in names:
        graph = Graph("common")
        shared = graph.layer("shared")
        graph.image("v1", layers=[shared])
        source.load(name, graph)
    target.fault("PUT upload", reference=shared.digest, status=500, times=float("inf"))
    pair(mirror_run, source, target, *names)
    mirror_run.sync(expect=1)
    assert {"failed"} == set(mirror_run.results().values())
    sent = [seen for seen in target.requests() if seen.kind == "PUT upload" and seen.reference == shared.digest]
    assert Policy().attempts + len(names) - 1 == len(sent)
    assert len(names) == sum(1 for seen in source.requests() if seen.reference == shared.digest)


def test_a_stalled_target_with_a_full_spool_does_not_delay_other_targets(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, frozen, well = scripted("source"), scripted("frozen"), scripted("well")
    graph = Graph("spool")
    for number in range(4):
        graph.image(f"v{number}", size=200_000)
    source.load("app", graph)
    frozen.fault("PUT upload", times=FOREVER, stall=threading.Event())
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{frozen.host}/app", f"{well.host}/app"]}]
    small: dict[str, Any] = {"spool-max": "300 KiB"}
    mirror_run.config(mirrors, source, frozen, well, **small)
    well.create("app")
    process = mirror_run.start("sync", mirror_run.config_file)
    try:
        assert eventually(lambda: set(graph.tags) == set(well.storage.repositories["app"].tags), 30)
    finally:
        process.send_signal(signal.SIGINT)
    assert 130 == mirror_run.finish(process).code
    assert_equal(source, "app", well)
