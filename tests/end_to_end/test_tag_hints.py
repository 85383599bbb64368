"""Tags that are not requested because a hint or a listing gives their digest; and an error of one tag fails no
other."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.registries.v1 import gz, tar
from tests.support import schema1
from tests.support.images import Graph
from tests.support.tool import MirrorTool

IMMUTABLE = {"immutable": [r"v\d"]}


def mirrored(tool: MirrorTool, source: ScriptedRegistry, target: ScriptedRegistry, **keys: Any) -> None:
    registries = {target.host: {"exclusive": True}} if keys.pop("exclusive", False) else {}
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"], **keys}]
    tool.config(mirrors, source, target, registries=registries)


def tagged(count: int) -> Graph:
    """Make one image with the tags v0, v1, and so on."""
    graph = Graph()
    image = graph.image("v0")
    for number in range(1, count):
        graph.tag(image.digest, f"v{number}")
    return graph


def lists_digests(registry: ScriptedRegistry, tags: dict[str, str]) -> None:
    """Add a map of digests to the registry's tag listing, as GCR and Artifact Registry do."""
    manifests = {digest: {"tag": [tag for tag in tags if tags[tag] == digest]} for digest in tags.values()}
    body = json.dumps({"name": "app", "tags": list(tags), "manifest": manifests}).encode()
    registry.fault("GET tags", status=200, body=body, times=FOREVER)


@pytest.mark.parametrize("tags", [IMMUTABLE, {**IMMUTABLE, "include": ["v1"]}], ids=["listed", "named"])
def test_an_immutable_tag_whose_digest_is_unknown_is_not_overwritten(
    tags: dict[str, Any], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    new, old = Graph("new"), Graph("old")
    new.image("v1")
    kept = old.image("v1")
    source.load("app", new)
    target.load("app", old)
    target.fault("HEAD manifest", reference="v1", status=500, times=FOREVER)
    mirrored(mirror_run, source, target, tags=tags)
    mirror_run.sync(expect=1)
    assert kept.digest == target.storage.repositories["app"].tags["v1"]
    assert 0 == target.counts()["PUT manifest"]


def test_an_immutable_tag_without_a_hint_is_requested_from_an_exclusive_target(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    new, old = Graph("new"), Graph("old")
    new.image("v1")
    new.image("v2")
    kept = old.image("v2")
    source.load("app", new)
    target.load("app", old)
    mirrored(mirror_run, source, target, tags={**IMMUTABLE, "include": ["v1"]}, exclusive=True)
    mirror_run.sync()
    mirrored(mirror_run, source, target, tags=IMMUTABLE, exclusive=True)
    mirror_run.sync(expect=3)
    assert kept.digest == target.storage.repositories["app"].tags["v2"]


def test_tags_without_a_hint_are_requested_from_an_exclusive_target_before_copying(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = tagged(10)
    source.load("app", graph)
    target.load("app", graph)
    mirrored(mirror_run, source, target, exclusive=True)
    mirror_run.sync("--only", f"{source.host}/app:v0")
    source.mark()
    target.mark()
    mirror_run.sync()
    assert {"GET tags": 1, "HEAD manifest": 10} == source.counts()
    assert {"HEAD manifest": 9} == target.counts()


@pytest.mark.parametrize("side", ["source", "target"])
def test_sync_uses_the_digests_of_a_tag_listing_and_verify_does_not(
    side: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    new, old = graph.image("v1", label="new"), graph.image(label="old")
    for registry in (source, target):
        registry.load("app", graph)
    target.storage.repositories["app"].tags["v1"] = old.digest
    lists_digests(source if side == "source" else target, {"v1": old.digest if side == "source" else new.digest})
    mirrored(mirror_run, source, target)
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    for option in ((), ("--deep",)):
        assert 1 == mirror_run("verify", mirror_run.config_file, *option).code
    mirror_run.sync("--deep")
    assert new.digest == target.storage.repositories["app"].tags["v1"]


def test_a_tag_with_two_digests_in_the_listing_is_requested(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    new, old = graph.image("v1", label="new"), graph.image(label="old")
    source.load("app", graph)
    manifests = {digest: {"tag": ["v1"]} for digest in (new.digest, old.digest)}
    body = json.dumps({"name": "app", "tags": ["v1"], "manifest": manifests}).encode()
    source.fault("GET tags", status=200, body=body, times=FOREVER)
    target.load("app", graph)
    mirrored(mirror_run, source, target)
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    assert 1 == source.counts()["HEAD manifest"]


def test_an_image_that_moves_during_verify_is_not_reported_as_complete(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    graph.image("v1", label="new")
    old = graph.image(label="old")
    source.load("app", graph)
    target.load("app", graph)

    def move(request: Request) -> None:
        if request.kind == "GET manifest" and request.reference == "v1":
            target.storage.repositories["app"].tags["v1"] = old.digest

    target.hook = move
    mirrored(mirror_run, source, target)
    ran = mirror_run("verify", mirror_run.config_file)
    assert (1, True) == (ran.code, f" to {old.digest}" in ran.out)


@pytest.mark.parametrize(("side", "trouble"), [("source", "denied"), ("target", "denied"), ("target", "reset")])
def test_a_tag_that_cannot_be_requested_fails_alone(
    side: str, trouble: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = tagged(100)
    for registry in (source, target):
        registry.load("app", graph)
    fault: dict[str, Any] = {"status": 403} if trouble == "denied" else {"cut_head_after": 0}
    (source if side == "source" else target).fault("HEAD manifest", reference="v50", times=FOREVER, **fault)
    mirrored(mirror_run, source, target)
    mirror_run.sync(expect=1)
    assert {"up-to-date": 99, "failed": 1} == Counter(mirror_run.results().values())


def point(registry: ScriptedRegistry, digest: str) -> None:
    """Let `app:v1` refer to `digest`."""
    registry.storage.repositories["app"].tags["v1"] = digest


def killed_after_the_tag_was_put(tool: MirrorTool, target: ScriptedRegistry) -> None:
    """Run a sync that gets SIGKILL when the target has carried out the PUT of `v1`, before the response is sent."""
    aimed = threading.Event()

    def kill(request: Request, reply: Reply) -> Reply:
        aimed.wait(60)
        process.kill()
        process.wait(10)
        return reply

    target.fault("PUT manifest", reference="v1", change=kill)
    process = tool.start("sync", tool.config_file)
    aimed.set()
    assert -signal.SIGKILL == tool.finish(process).code


def answered_by_somebody_else(tool: MirrorTool, target: ScriptedRegistry) -> None:
    """Run a sync whose PUT of `v1` is carried out, while a gateway answers with a redirect to its login page."""
    target.fault("PUT manifest", reference="v1", after=True, status=302, headers=[("Location", "/login")])
    tool.sync(expect=1)


@pytest.mark.parametrize("lose_the_response", [killed_after_the_tag_was_put, answered_by_somebody_else])
def test_a_tag_whose_put_got_no_response_is_copied_again_when_the_source_rolls_back(
    lose_the_response: Callable[[MirrorTool, ScriptedRegistry], None], scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    old, new = graph.image("v1", label="old").digest, graph.image(label="new").digest
    source.load("app", graph)
    mirrored(mirror_run, source, target, exclusive=True)
    mirror_run.sync()
    point(source, new)
    lose_the_response(mirror_run, target)
    assert new == target.storage.repositories["app"].tags["v1"]
    point(source, old)
    mirror_run.sync()
    assert {"copied"} == set(mirror_run.results().values())
    assert old == target.storage.repositories["app"].tags["v1"]
    target.mark()
    mirror_run.sync()
    assert {} == target.counts()


def test_an_immutable_tag_whose_put_got_no_response_is_checked_when_the_source_rolls_back(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph()
    old, new = graph.image("v1", "latest", label="old").digest, graph.image(label="new").digest
    source.load("app", graph)
    mirrored(mirror_run, source, target, tags=IMMUTABLE)
    mirror_run.sync()
    del target.storage.repositories["app"].tags["v1"]
    point(source, new)
    answered_by_somebody_else(mirror_run, target)
    point(source, old)
    mirror_run.sync(expect=3)
    assert {"conflict", "up-to-date"} == set(mirror_run.results().values())


def test_an_immutable_tag_on_the_target_counts_as_copied_although_the_response_to_its_put_was_lost(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", immutable_tags=True)
    source.load("app", tagged(3))
    target.fault("PUT manifest", reference="v1", after=True, reset=True)
    mirrored(mirror_run, source, target)
    mirror_run.sync()
    assert {"copied": 3} == Counter(mirror_run.results().values())
    assert source.storage.repositories["app"].tags == target.storage.repositories["app"].tags


def test_a_manifest_put_with_status_200_or_202_is_copied_if_the_target_has_it(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    source.load("app", tagged(4))
    for tag, status in (("v0", 200), ("v1", 202)):
        target.fault("PUT manifest", reference=tag, after=True, status=status)
    for tag, status in (("v2", 200), ("v3", 202)):
        target.fault("PUT manifest", reference=tag, status=status)
    mirrored(mirror_run, source, target)
    ran = mirror_run.sync(expect=1)
    assert {"v0", "v1"} == set(target.storage.repositories["app"].tags)
    assert {"copied": 2, "failed": 2} == Counter(mirror_run.results().values())
    assert "202" in ran.text
    target.mark()
    mirror_run.sync()
    assert source.storage.repositories["app"].tags == target.storage.repositories["app"].tags
    assert 2 == target.counts()["PUT manifest"]


@pytest.mark.parametrize("immutable", [True, False], ids=["immutable, no answer", "202"])
def test_a_head_that_fails_once_is_retried_before_a_manifest_counts_as_missing(
    immutable: bool, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", immutable_tags=immutable)
    source.load("app", tagged(1))
    answer: dict[str, Any] = {"reset": True} if immutable else {"status": 202}
    target.fault("PUT manifest", reference="v0", after=True, **answer)
    target.fault("HEAD manifest", reference="v0", status=503)
    mirrored(mirror_run, source, target)
    mirror_run.sync()
    assert {"copied"} == set(mirror_run.results().values())


@pytest.mark.parametrize("v1", ["auto", "never"])
def test_schema1_is_converted_if_the_tag_listing_has_digests(
    v1: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, graph = scripted("source"), scripted("target"), Graph("schema1")
    old = graph.schema1("old", layers=[graph.blob(gz(tar(a=b"a")))])
    graph.image("new")
    source.load("app", graph)
    lists_digests(source, {"old": old.digest, "new": graph.tags["new"]})
    mirrored(mirror_run, source, target, schema1="convert", v1=v1)
    mirror_run.sync()
    there = target.storage.repositories["app"]
    assert there.tags["new"] == graph.tags["new"]
    assert there.tags["old"] != old.digest
    assert schema1.MEDIA_TYPE not in {body.media_type for body in there.manifests.values()}
    source.mark()
    mirror_run.sync()
    assert {"up-to-date"} == set(mirror_run.results().values())
    assert {"GET tags": 1, "HEAD manifest": 2} == source.counts()
