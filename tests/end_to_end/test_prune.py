"""`mirror prune` deletes only what a sync wrote and what is certainly not selected any more."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.client import sha256
from tests.registries.exchange import Reply, Request
from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import V1, gz, no_v2, tar
from tests.support.images import OCI_INDEX, Graph, tag_of
from tests.support.oracle import snapshot
from tests.support.prune_scenarios import SCENARIOS, Mirror, Scene, small_image
from tests.support.seeding import push
from tests.support.signed import SIGNATURE, Signed, listed_on
from tests.support.tool import MirrorTool, Ran
from tests.support.walks import Walker, layout_view


def make_plan(tool: MirrorTool, *, expect: int = 0, file: str = "plan.json") -> dict[str, Any]:
    """Run `mirror prune --plan`, and return the plan."""
    ran = tool("prune", tool.config_file, "--plan", tool.folder / file)
    assert expect == ran.code, ran
    document: dict[str, Any] = json.loads((tool.folder / file).read_text())
    return document


def apply(tool: MirrorTool, *options: str, expect: int = 0) -> Ran:
    """Run `mirror prune --apply`."""
    ran = tool("prune", tool.config_file, "--apply", tool.folder / "plan.json", *options)
    assert expect == ran.code, ran
    return ran


def flat(ran: Ran) -> str:
    """Return the standard output without line breaks."""
    return " ".join(ran.out.split())


def planned(plan: dict[str, Any]) -> set[str]:
    """Return the names of the tags in a plan, without the host."""
    return {entry["name"].partition("/")[2] for repository in plan["repositories"] for entry in repository["tags"]}


def report(tool: MirrorTool) -> dict[str, str]:
    """Return the results in the report of the last prune."""
    (file,) = tool.state.rglob("prune-report.json")
    return {image["target"].partition("/")[2]: image["result"] for image in json.loads(file.read_text())["images"]}


def names(scenario: str, tags: Sequence[str]) -> set[str]:
    """Return the names of tags on the target."""
    return {f"{scenario}{tag}" if ":" in tag else f"{scenario}:{tag}" for tag in tags}


@pytest.mark.parametrize("by_name", [True, False], ids=["by-name", "by-digest"])
def test_only_what_a_sync_wrote_and_what_is_certainly_not_selected_is_deleted(
    scripted: ScriptedFactory, mirror_run: MirrorTool, by_name: bool
) -> None:
    source = scripted("source", referrers=True)
    target = scripted("target", referrers=by_name, tag_delete=by_name)
    scenarios = {name: one for name, one in SCENARIOS.items() if by_name or one.depends_on_registry}
    scenes = {name: Scene(name, source, target) for name in scenarios}

    def configure(*, after: bool) -> None:
        mirrors: list[Mirror] = []
        for name, scenario in scenarios.items():
            mirrors += (scenario.after if after and scenario.after else scenario.before)(scenes[name])
        mirror_run.config(mirrors, source, target)

    def step(which: str) -> None:
        for name, scenario in scenarios.items():
            getattr(scenario, which)(scenes[name])

    step("prepare")
    configure(after=False)
    mirror_run.sync()
    step("change")
    configure(after=True)
    mirror_run.sync(expect=(0, 1))
    step("later")
    before = snapshot(target, _repositories(target))
    assert not before.problems
    target.mark()
    plan = make_plan(mirror_run, expect=1 if by_name else 0)
    text = mirror_run.runs[-1].out
    assert [] == target.writes()
    expected = {name: scenario.expected(by_name=by_name) for name, scenario in scenarios.items()}
    wanted = {name: expected[name] if one.planned is None else one.planned for name, one in scenarios.items()}
    assert set().union(*(names(name, tags) for name, tags in wanted.items())) == planned(plan)
    step("meanwhile")
    before = snapshot(target, _repositories(target))
    manifests = {name: set(target.create(name).manifests) for name in _repositories(target)}
    text += apply(mirror_run, "--max-delete", "100", expect=1).out
    after = snapshot(target, _repositories(target))
    assert not after.problems
    assert after.tags.items() <= before.tags.items()
    lost = before.tags.keys() - after.tags.keys()
    attached = {(repository, tag) for repository, tag in lost if tag.startswith("sha256-")}
    deleted = set().union(*(names(name, tags) for name, tags in expected.items()))
    assert deleted == {f"{repository}:{tag}" for repository, tag in lost - attached}
    results = {name for name, result in report(mirror_run).items() if result == "deleted"}
    assert deleted == {name for name in results if ":sha256-" not in name and "@" not in name}
    for name, scenario in scenarios.items():
        if not by_name or scenario.by_digest is None:
            assert scenario.reason in " ".join(text.split()), name
    for name in _repositories(target):
        scene = scenes.get(name) or Scene(name, source, target)
        gone = manifests[name] - target.create(name).manifests.keys()
        referrers = (gone & scene.graph.manifests.keys()) - set(scene.graph.tags.values())
        signatures = {tag for repository, tag in attached if repository == name and tag.endswith(".sig")}
        assert (scenarios[name].attachments if name in scenarios else 0) == len(referrers) + len(signatures), name
        assert not gone & scene.foreign_digests, name
        led = {before.tags[key] for key in lost if key[0] == name}
        assert gone - referrers <= (set() if by_name else led), name


def _repositories(registry: ScriptedRegistry) -> list[str]:
    return sorted(registry.storage.repositories)


# ---- what is refused as a whole


class World:
    """A source and a target with one repository of `count` tags, `t0` to `tN`, of which the last `removed` are gone
    from the source after the first sync."""

    def __init__(
        self, tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, *, count: int = 3, removed: int = 1
    ) -> None:
        self.tool, self.source, self.target = tool, source, target
        self.tags = [f"t{number}" for number in range(count)]
        self.removed = self.tags[count - removed :]
        graph = Graph("app")
        for tag in self.tags:
            small_image(graph, tag)
        self.graph = graph
        source.load("app", graph)

    @property
    def mirror(self) -> Mirror:
        return {"source": f"{self.source.host}/app", "targets": [f"{self.target.host}/copy"]}

    def sync_and_remove(self, *arguments: str, **keys: Any) -> None:
        """Sync, and delete tags at the source."""
        self.tool.config([self.mirror], self.source, self.target, **keys)
        self.tool.sync(*arguments)
        for tag in self.removed:
            del self.source.create("app").tags[tag]
        self.target.mark()

    def left(self) -> set[str]:
        """Return the tags on the target."""
        return set(self.target.create("copy").tags)


@pytest.fixture
def world(scripted: ScriptedFactory, mirror_run: MirrorTool) -> World:
    return World(mirror_run, scripted("source"), scripted("target", tag_delete=True))


def test_a_plan_must_be_valid_recent_and_made_for_the_same_configuration(world: World) -> None:
    tool = world.tool
    world.sync_and_remove()
    plan, file = make_plan(tool), tool.folder / "plan.json"
    world.target.mark()
    old = (datetime.now(UTC) - timedelta(hours=25)).isoformat()
    early = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for text, message in (
        (json.dumps({**plan, "created": old}), "more than 24 hours ago"),
        (json.dumps({**plan, "created": early}), "made in the future"),
        (json.dumps({**plan, "config": {"sha256": "0" * 64}}), "made for another configuration"),
        (json.dumps({**plan, "schema": 2}), "has format 2"),
        (json.dumps({**plan, "created": "9999-12-31T23:59:59-14:00"}), "is not a valid plan"),
        (json.dumps({**plan, "created": "0001-01-01T00:00:00+14:00"}), "is not a valid plan"),
        ("[]", "is not a valid plan"),
    ):
        file.write_text(text)
        ran = apply(tool, "--max-delete", "100", expect=2)
        assert message in ran.err
        assert f"`mirror prune {tool.config_file} --plan FILE`" in ran.err
    file.write_text(json.dumps(plan))
    with (world.tool.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run holds the lock" in apply(world.tool, expect=75).err
    tool.config([{**world.mirror, "tags": ["t0"]}], world.source, world.target)
    assert "the configuration was changed since then" in apply(tool, expect=2).err
    assert ([], set(world.tags)) == (world.target.requests(), world.left())


def test_a_plan_that_deletes_too_much_is_refused_before_anything_is_deleted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    world = World(mirror_run, scripted("source"), scripted("target", tag_delete=True), count=10, removed=2)
    world.sync_and_remove()
    make_plan(mirror_run)
    assert "/copy: delete 2 of 10 tags\n  deleted at the source: t8, t9\n" in mirror_run.runs[-1].out
    assert mirror_run.runs[-1].out.endswith("plan.json --max-delete 20\n")
    for limit in ([], ["--max-delete", "19.9"]):
        ran = apply(mirror_run, *limit, expect=1)
        assert "2 of 10 tags of" in flat(ran)
        assert ([], set(world.tags)) == (world.target.writes(), world.left())
        assert {"copy:t8": "kept", "copy:t9": "kept"} == report(mirror_run)
    assert 0 == mirror_run("prune", mirror_run.config_file, "--plan=-plan.json").code
    command = shlex.split(mirror_run.runs[-1].out.splitlines()[-1].partition(": mirror ")[2])
    assert 0 == mirror_run(*command).code
    assert set(world.tags[:8]) == world.left()


def test_only_tags_that_the_state_records_for_this_configuration_are_deleted(world: World) -> None:
    tool = world.tool
    world.sync_and_remove()
    templates = [{**world.mirror, "targets": [f"{world.target.host}/copy:{{tag}}-other"]}]
    other = tool.config(templates, world.source, world.target, file=tool.folder / "other.yaml")
    assert 0 == tool("sync", other).code
    del world.source.create("app").tags["t1"]
    assert {"copy:t1", "copy:t2"} == planned(make_plan(tool))
    state, aside = tool.state / "state.sqlite3", tool.folder / "aside"
    state.rename(aside)
    world.target.mark()
    assert [] == make_plan(tool, file="without.json")["repositories"]
    assert "the state has no record of tags" in tool.runs[-1].out
    ran = apply(tool, "--max-delete", "100", expect=1)
    assert "the state has no record that a sync with this configuration copied the tag" in flat(ran)
    assert [] == world.target.writes()
    aside.replace(state)
    apply(tool, "--max-delete", "100")
    assert {"t0", "t0-other", "t1-other"} == world.left()


def test_an_image_without_a_tag_that_another_configuration_copied_is_not_deleted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    world = World(mirror_run, source, target)
    digest = world.graph.tags["t2"]
    pinned = [{**world.mirror, "source": f"{source.host}/app@{digest}"}]
    other = mirror_run.config(pinned, source, target, file=mirror_run.folder / "other.yaml")
    assert 0 == mirror_run("sync", other).code
    world.sync_and_remove()
    make_plan(mirror_run)
    assert "the manifest is also used by" in flat(apply(mirror_run, "--max-delete", "100", expect=1))
    assert digest in target.create("copy").manifests


def test_wrong_options_contact_no_host(world: World) -> None:
    world.tool.config([world.mirror], world.source, world.target)
    for options, message in (
        (["--plan", "x", "--max-delete", "5"], "only with --apply"),
        (["--apply", "x", "--max-delete", "150%"], "a percentage above 0 and up to 100"),
        (["--apply", "missing.json"], "cannot read the plan"),
        (["--plan", str(world.tool.config_file)], "would replace the configuration"),
        ([], "one of the arguments --plan --apply is required"),
    ):
        ran = world.tool("prune", world.tool.config_file, *options)
        assert 2 == ran.code
        assert message in ran.err
    bundle = [{"source": f"{world.source.host}/app", "targets": [f"{world.tool.folder}/out.tar:app"]}]
    world.tool.config(bundle, world.source)
    ran = world.tool("prune", world.tool.config_file, "--plan", "x")
    assert (2, True) == (ran.code, "nothing can be deleted from a bundle" in ran.err)
    assert [] == world.source.requests() + world.target.requests()


# ---- registries that reject deletions


def test_a_rejected_deletion_is_reported_and_the_plan_can_be_applied_again(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    world = World(mirror_run, scripted("source"), scripted("target", tag_delete=True), count=4, removed=3)
    world.sync_and_remove()
    make_plan(mirror_run)
    for reply, requests, message in (
        ({"status": 405}, 2, "REGISTRY_STORAGE_DELETE_ENABLED=true"),
        ({"status": 403}, 1, "403"),
        ({"status": 202}, 4, "the manifest still exists, although the registry accepted its deletion"),
    ):
        world.target.faults.clear()
        world.target.fault("DELETE manifest", times=99, **reply)
        world.target.mark()
        ran = apply(mirror_run, "--max-delete", "100", expect=1)
        assert message in flat(ran)
        assert (requests, set(world.tags)) == (world.target.counts()["DELETE manifest"], world.left())
        assert dict.fromkeys(("copy:t1", "copy:t2", "copy:t3"), "failed") == report(mirror_run)
    world.target.faults.clear()
    world.target.fault("DELETE manifest", reference="t2", status=403)
    apply(mirror_run, "--max-delete", "100", expect=1)
    assert {"copy:t1": "deleted", "copy:t2": "failed", "copy:t3": "failed"} == report(mirror_run)
    apply(mirror_run, "--max-delete", "100")
    assert {"copy:t1": "up-to-date", "copy:t2": "deleted", "copy:t3": "deleted"} == report(mirror_run)
    assert {"t0"} == world.left()


def test_after_a_signal_the_plan_can_be_applied_again(world: World) -> None:
    tool, stall = world.tool, threading.Event()
    world.removed = ["t1", "t2"]
    world.sync_and_remove()
    make_plan(tool)
    stalled = world.target.fault("DELETE manifest", nth=2, stall=stall)
    process = tool.start("prune", tool.config_file, "--apply", tool.folder / "plan.json", "--max-delete", "100")
    assert stalled.fired.wait(60)
    process.terminate()
    ran = tool.finish(process)
    stall.set()
    assert 143 == ran.code, ran
    assert {"copy:t1": "deleted", "copy:t2": "skipped"} == report(tool)
    apply(tool, "--max-delete", "100")
    assert "up-to-date" == report(tool)["copy:t1"]
    assert {"t0"} == world.left()


def test_a_terminal_shows_how_many_tags_have_been_deleted(world: World) -> None:
    tool, stall = world.tool, threading.Event()
    world.removed = ["t1", "t2"]
    world.sync_and_remove()
    make_plan(tool)
    world.target.fault("DELETE manifest", nth=2, stall=stall)
    words = ("prune", tool.config_file, "--apply", tool.folder / "plan.json", "--max-delete", "100")
    screen, terminal = os.openpty()
    environment = {**tool.environment, "TERM": "xterm"}
    with os.fdopen(screen, "rb", buffering=0) as output:
        with subprocess.Popen(tool.command(*words), stdout=subprocess.DEVNULL, stderr=terminal, env=environment) as run:
            os.close(terminal)
            shown = b""
            while b"deleting: 1 of 2 tags and attachments" not in shown:
                assert select.select([output], [], [], 60)[0], shown
                shown += output.read(4096)
            stall.set()
            with suppress(OSError):  # the end of a terminal
                while output.read(4096):
                    pass
        assert 0 == run.returncode
    assert {"t0"} == world.left()


class Careless:
    """A target that deletes the manifest with one of its tags, and with it the tags of someone else."""

    def __init__(self, world: World, *others: str) -> None:
        world.sync_and_remove()
        self.world, self.home = world, world.target.create("copy")
        for tag in others:
            self.home.tags[tag] = self.home.tags["t2"]
        self.before = snapshot(world.target)
        make_plan(world.tool)

    def delete(self, request: Request) -> None:
        """Carry out the deletion of a tag. Later requests find nothing to delete."""
        digest = self.home.tags.get(request.reference)
        self.home.manifests.pop(digest or "", None)
        self.home.tags = {tag: other for tag, other in self.home.tags.items() if other != digest}

    def check(self, lost: set[str]) -> None:
        """Check that only the tags `lost` are lost."""
        after = snapshot(self.world.target)
        assert ({("copy", tag) for tag in lost}, []) == (self.before.tags.keys() - after.tags.keys(), after.problems)
        assert after.tags.items() <= self.before.tags.items()


@pytest.mark.parametrize("status", [202, 500])
def test_a_registry_that_deletes_the_manifest_with_one_of_its_tags_gets_it_back(world: World, status: int) -> None:
    careless = Careless(world, "theirs", "theirs-too")

    def delete_all(request: Request) -> Reply:
        careless.delete(request)
        return Reply(status)

    world.target.fault("DELETE manifest", times=99, hook=delete_all)
    ran = apply(world.tool, "--max-delete", "100", expect=3)
    assert "the manifest was restored" in flat(ran)
    careless.check({"t2"})


def test_a_manifest_that_a_registry_deleted_is_restored_after_a_signal(world: World) -> None:
    tool, careless = world.tool, Careless(world, "theirs")
    processes: list[subprocess.Popen[str]] = []

    def delete_and_terminate(request: Request) -> Reply:
        careless.delete(request)
        processes[0].terminate()
        return Reply(202)

    world.target.fault("DELETE manifest", hook=delete_and_terminate)
    processes.append(tool.start("prune", tool.config_file, "--apply", tool.folder / "plan.json", "--max-delete", "100"))
    ran = tool.finish(processes[0])
    assert 143 == ran.code, ran
    careless.check({"t2"})


def test_nothing_is_deleted_if_an_index_on_the_target_cannot_be_read(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    world = World(mirror_run, source, target)
    world.sync_and_remove()
    foreign = Graph("foreign")
    digest = world.graph.tags["t2"]
    child = target.create("copy").manifests[digest]
    made = foreign.index("theirs", children=[foreign.raw(child.data, child.media_type)])
    target.load("copy", foreign)
    make_plan(mirror_run)
    target.fault("GET manifest", reference=made.digest, times=99, status=404)
    ran = apply(mirror_run, "--max-delete", "100", expect=1)
    assert "copy:theirs exists, but its manifest" in flat(ran)
    assert digest in target.create("copy").manifests


def test_each_deletion_of_a_shared_tag_is_checked(world: World) -> None:
    """A host may store its repositories in different ways."""
    world.removed = ["t1", "t2"]
    careless = Careless(world, "theirs")
    careless.home.tags["theirs-too"] = careless.home.tags["t1"]
    careless.before = snapshot(world.target)

    def delete_all(request: Request) -> Reply:
        careless.delete(request)
        return Reply(202)

    world.target.fault("DELETE manifest", nth=2, hook=delete_all)
    assert "the manifest was restored" in flat(apply(world.tool, "--max-delete", "100", expect=3))
    careless.check({"t1", "t2"})


def test_all_tags_are_restored_that_can_be_restored(world: World) -> None:
    careless = Careless(world, "theirs", "theirs-too")

    def delete_all(request: Request) -> Reply:
        careless.delete(request)
        return Reply(202)

    world.target.fault("DELETE manifest", times=99, hook=delete_all)
    world.target.fault("PUT manifest", reference="theirs", times=99, status=403)
    ran = apply(world.tool, "--max-delete", "100", expect=3)
    assert "copy:theirs could not be restored" in flat(ran)
    careless.check({"t2", "theirs"})


def test_a_deletion_is_not_confirmed_if_it_is_unknown_whether_the_manifest_still_exists(world: World) -> None:
    careless = Careless(world, "theirs")
    digest = careless.home.tags["t2"]

    def reject_later_requests(request: Request) -> Reply:
        del careless.home.tags["t2"]
        world.target.fault("HEAD manifest", reference=digest, times=99, status=403)
        world.target.fault("GET manifest", reference=digest, times=99, status=403)
        return Reply(202)

    world.target.fault("DELETE manifest", hook=reject_later_requests)
    apply(world.tool, "--max-delete", "100", expect=1)
    assert {"copy:t2": "failed"} == report(world.tool)


# ---- states and stores of other kinds


def test_a_tag_that_a_shard_wrote_to_an_exclusive_target_is_deleted_and_can_be_copied_again(world: World) -> None:
    exclusive = {"registries": {world.target.host: {"exclusive": True}}}
    world.sync_and_remove("--shard", "0/1", **exclusive)
    assert {"copy:t2"} == planned(make_plan(world.tool))
    apply(world.tool, "--max-delete", "100")
    assert {"t0", "t1"} == world.left()
    world.source.load("app", world.graph)
    world.tool.sync("--shard", "0/1")
    assert set(world.tags) == world.left()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_source_that_a_shard_read_over_v2_is_not_read_over_v1(world: World, shards: int) -> None:
    auto = {world.source.host: {"v1": "auto"}}
    world.tool.config([world.mirror], world.source, world.target, registries=auto)
    for shard in range(shards):
        world.tool.sync("--shard", f"{shard}/{shards}")
    del world.source.create("app").tags["t2"]
    assert {"copy:t2"} == planned(make_plan(world.tool))
    world.source.load("app", world.graph)
    v1 = V1()
    v1.tag("app", t0=v1.image(gz(tar(a=b"a"))))  # the registry has fewer tags over v1
    world.source.v1, world.source.hook = v1, no_v2
    apply(world.tool, "--max-delete", "100", expect=1)
    assert set(world.tags) == world.left()
    (refused,) = make_plan(world.tool, expect=1)["refused"]
    assert f"{world.target.host}/copy" == refused["repository"]
    assert "responded over v2 in an earlier run" in refused["reason"]


def test_images_are_deleted_from_a_layout_with_the_blobs_that_only_they_need(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, folder, graph = scripted("source"), mirror_run.folder / "layout", Graph("app")
    shared = graph.layer("shared", 100)
    graph.image("a", layers=[shared, graph.layer("a", 100)], label="a")
    gone = graph.image("b", layers=[shared, graph.layer("b", 100)], label="b")
    graph.signature(gone)
    source.load("app", graph)
    mirror_run.config([{"source": f"{source.host}/app", "targets": [f"oci:{folder}:app"]}], source)
    mirror_run.sync()
    # Someone else adds an image that has a layer of `b`, and a blob that nothing refers to.
    other = Graph("other")
    foreign = other.image("theirs", layers=[other.blob(graph.blobs[graph.layer("b", 100).digest])], label="foreign")
    files = {**other.blobs, foreign.digest: other.manifests[foreign.digest].data, sha256(b"unfinished"): b"unfinished"}
    for digest, data in files.items():
        (folder / "blobs" / digest.replace(":", "/")).write_bytes(data)
    index = json.loads((folder / "index.json").read_text())
    entry = {**foreign.bare(), "annotations": {"org.opencontainers.image.ref.name": "theirs:v1"}}
    (folder / "index.json").write_text(json.dumps({**index, "manifests": [*index["manifests"], entry]}))
    before = {path.name for path in (folder / "blobs/sha256").iterdir()}
    source.create("app").tags = {"a": graph.tags["a"]}
    plan = make_plan(mirror_run)
    assert (1, 1) == (len(plan["repositories"][0]["tags"]), len(plan["repositories"][0]["attachments"]))
    assert "freed" in apply(mirror_run, "--max-delete", "100").out
    view = layout_view(folder)
    assert {("app", "a"), ("theirs", "v1")} == view.tags().keys()
    walker = Walker(view, hashing=True)
    assert [] == walker.problems("app", "a", graph.tags["a"]) + walker.problems("theirs", "v1", foreign.digest)
    lost = before - {path.name for path in (folder / "blobs/sha256").iterdir()}
    # The manifest and config of `b`; and the manifest, config and layer of its signature.
    assert 5 == len(lost)
    assert not {digest.partition(":")[2] for digest in files} & lost


def test_docker_registry_loses_only_what_nothing_else_uses(
    source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    signed = Signed(index_tags=True)
    signed.graph.image("shared", size=100)
    signed.graph.tag(signed.graph.tags["shared"], "twin")
    signed.graph.image("stays", size=100)
    push(source, "app", signed.graph)
    tags = ["3.20", "shared", "stays", "twin"]
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": tags}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    mirror_run.config([{**mirror, "tags": ["stays", "twin"]}], source, target)
    before = snapshot(target)
    plan = make_plan(mirror_run)
    assert {"copy:3.20", "copy:shared"} == planned(plan)
    ran = apply(mirror_run, "--max-delete", "50", expect=1)
    assert "also used by the tag twin" in flat(ran)
    after = snapshot(target)
    assert [] == after.problems
    lost = {tag for _, tag in before.tags.keys() - after.tags.keys()}
    lists = {subject.replace(":", "-") for subject in signed.listed}
    assert {"3.20", signed.tag, *lists} == lost
    with target.client() as client:
        gone = {digest for digest in signed.manifests() if client.manifest("copy", digest).status == 404}
    assert signed.manifests() == gone


def test_a_list_of_referrers_with_an_entry_of_someone_else_stays_with_all_its_entries(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, signed = scripted("source", referrers=True), scripted("target"), Signed(index_tags=False)
    signed.graph.image("stays", size=100)
    source.load("app", signed.graph)
    mirror = {"source": f"{source.host}/app", "targets": [f"{target.host}/copy"], "tags": ["3.20", "stays"]}
    mirror_run.config([mirror], source, target)
    mirror_run.sync()
    graph, home, tag = Graph("foreign"), target.create("copy"), tag_of(signed.image)
    foreign = graph.artifact(kind=SIGNATURE, texts=[b"someone else's"], subject=signed.image)
    listed = json.loads(home.manifests[home.tags[tag]].data)
    graph.raw(json.dumps({**listed, "manifests": [*listed["manifests"], foreign.bare()]}).encode(), OCI_INDEX, tag)
    target.load("copy", graph)
    mirror_run.config([{**mirror, "tags": ["stays"]}], source, target)
    before = snapshot(target)
    assert [f"{target.host}/copy:{tag}"] == [entry["name"] for entry in make_plan(mirror_run)["kept"]]
    apply(mirror_run, "--max-delete", "100")
    after = snapshot(target)
    assert [] == after.problems
    lost = {name for _, name in before.tags.keys() - after.tags.keys()}
    # The list of the index stays, so its SBOM stays, and the signature of that.
    assert {"3.20", signed.tag, tag_of(signed.child)} == lost
    assert {foreign.digest, signed.sbom.digest} == listed_on(target, "copy", signed.image.digest, api=False)
