"""Mounts: whatever a target answers, all blobs are copied, and an upload session opened instead is used or deleted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.end_to_end.worlds import assert_synced, loaded, pair
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_equal
from tests.support.seeding import seed
from tests.support.tool import MirrorTool

NAMES = ("app-0", "app-1", "app-2", "app-3")


@pytest.fixture
def source(scripted: ScriptedFactory) -> ScriptedRegistry:
    """Make four repositories with the same two images, and one image of their own each."""
    registry = scripted("source")
    for name in NAMES:
        graph = Graph("common")
        graph.platforms("v1", "v2")
        graph.image("own", label=name, layers=[graph.layer(name)])
        registry.load(name, graph)
    return registry


def test_a_successful_mount_costs_one_request(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    asked = target.counts()
    assert 6 * (len(NAMES) - 1) == asked["POST mount"]
    assert 0 == asked["HEAD blob"]
    assert 6 + 2 * len(NAMES) == asked["PUT upload"] == asked["POST upload"]


def test_repositories_of_a_wildcard_are_mounted_from_like_named_ones(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    mirrors = [{"source": f"{source.host}/*", "targets": [f"{target.host}/{{repository}}"]}]
    mirror_run.config(mirrors, source, target)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    assert 6 * (len(NAMES) - 1) == target.counts()["POST mount"]
    assert 6 + 2 * len(NAMES) == target.counts()["PUT upload"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_refused_mount_ends_only_mounts_from_that_repository(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, status: int
) -> None:
    target = scripted("target")

    def refuse(request: Request) -> Reply | None:
        return error_reply(status, "DENIED") if request.kind == "POST mount" else None

    target.hook = refuse
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    assert target.counts(status=status)["POST mount"]
    assert {"copied"} == set(mirror_run.results().values())
    assert target.wait_until_no_uploads()


def test_a_host_that_never_mounts_is_detected_and_its_upload_sessions_are_used(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target", mounts=False)
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    assert target.wait_until_no_uploads()
    asked = target.counts()
    # Every session was opened by a mount or a POST, and ended by a commit.
    assert asked["POST mount"] + asked["POST upload"] == asked["PUT upload"] + asked["DELETE upload"]
    assert asked["POST mount"] < 6 * (len(NAMES) - 1), "a host that never mounts is not asked for ever"


def test_a_host_that_mounts_only_blobs_of_a_manifest_gets_everything(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target", mount_after_manifest=True)
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    assert target.wait_until_no_uploads()


@pytest.mark.parametrize(
    "rule", [{"status": 500}, {"status": 502}, {"status": 503}, {"reset": True}], ids=["500", "502", "503", "reset"]
)
def test_a_mount_with_a_server_error_is_retried_and_ends_no_other_mounts(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, rule: dict[str, Any]
) -> None:
    target = scripted("target")
    errors = target.fault("POST mount", **rule, times=2)
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    assert 2 == errors.hits
    assert 6 * (len(NAMES) - 1) == target.counts(status=201)["POST mount"]


def test_a_blob_that_cannot_be_mounted_ends_no_mounts_of_others(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    odd = min(source.storage.repositories[NAMES[0]].blobs & source.storage.repositories[NAMES[1]].blobs)
    target.fault("POST mount", reference=odd, times=FOREVER, hook=lambda request: error_reply(404, "BLOB_UNKNOWN"))
    pair(mirror_run, source, target, *NAMES[:2])
    mirror_run.sync()
    assert_synced(source, target, *NAMES[:2])
    assert (5, 1) == (target.counts(status=201)["POST mount"], target.counts(status=404)["POST mount"])


def test_a_mount_waits_for_a_host_that_is_rate_limited(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target")
    busy = target.fault("POST mount", status=429, headers=[("Retry-After", "1")])
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert 1 == busy.hits
    assert_synced(source, target, *NAMES)
    assert 6 * (len(NAMES) - 1) == target.counts(status=201)["POST mount"]


def test_a_mount_without_a_digest_in_its_response_is_checked_by_head(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = scripted("target", content_digest=False)
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    assert 6 * (len(NAMES) - 1) == target.counts()["HEAD blob"]


def test_a_false_201_for_a_mount_breaks_no_image(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """The target answers 201 without having the blob. It then refuses the manifest, and the image is pushed once more
    with a check of every blob."""
    target = scripted("target")
    lied: set[str] = set()
    repositories: list[str] = []  # the first to mount; which one uploads the common blobs depends on the timing

    def lie(request: Request) -> Reply | None:
        if request.kind != "POST mount":
            return None
        repositories.append(request.repository)
        if request.repository != repositories[0] or request.reference in lied:
            return None
        lied.add(request.reference)
        return Reply(201, [("Docker-Content-Digest", request.reference), ("Location", "/v2/x/blobs/x")])

    target.hook = lie
    pair(mirror_run, source, target, *NAMES)
    mirror_run.sync()
    assert lied
    assert_synced(source, target, *NAMES)


def test_an_image_is_mounted_from_its_source_on_the_same_host(
    registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    both = registry_factory("both")
    seed(both, "team/app", images=2, index=True)
    mirrors = [{"source": f"{both.host}/team/app", "targets": [f"{both.host}/prod/app"]}]
    mirror_run.config(mirrors, both)
    both.mark()
    mirror_run.sync()
    assert (0, 0) == (both.counts()["GET blob"], both.counts()["PUT upload"])
    assert 0 == mirror_run.report()["totals"]["bytes"]["sent"]


@pytest.mark.parametrize("wildcard", [False, True], ids=["named", "wildcard"])
def test_a_new_target_repository_gets_blobs_of_earlier_runs_by_mounts(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, wildcard: bool
) -> None:
    target = scripted("target")
    late = source.storage.repositories.pop("app-3")
    every = [{"source": f"{source.host}/*", "targets": [f"{target.host}/{{repository}}"]}]
    pair(mirror_run, source, target, *NAMES[:3])
    if wildcard:
        mirror_run.config(every, source, target)
    mirror_run.sync()
    source.storage.repositories["app-3"] = late
    if not wildcard:
        pair(mirror_run, source, target, *NAMES)
    target.mark()
    source.mark()
    mirror_run.sync()
    assert_synced(source, target, *NAMES)
    asked = target.counts()
    assert (6, 2, 0) == tuple(asked[kind] for kind in ("POST mount", "PUT upload", "HEAD blob"))
    assert 2 == source.counts()["GET blob"]


def test_a_source_repository_on_the_target_host_is_mounted_from_by_other_mirrors_too(
    source: ScriptedRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    """An earlier run only read `team/base`, for another host; `app-0` shares its blobs."""
    target, backup = scripted("target"), scripted("backup")
    graph = Graph("common")
    graph.platforms("v1", "v2")
    target.load("team/base", graph)
    base = {"source": f"{target.host}/team/base", "targets": [f"{backup.host}/base"]}
    app = {"source": f"{source.host}/app-0", "targets": [f"{target.host}/app-0"], "tags": ["v1", "v2"]}
    mirror_run.config([base], target, backup)
    mirror_run.sync()
    mirror_run.config([base, app], source, target, backup)
    mirror_run.sync()
    assert_equal(source, "app-0", target, tags=["v1", "v2"])
    assert 6 == target.counts(status=201)["POST mount"]
    assert (0, 0) == (target.counts()["PUT upload"], source.counts()["GET blob"])


def test_a_repository_that_the_configuration_does_not_name_is_never_mounted_from(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = loaded(source)
    target.load("secret", graph)
    pair(mirror_run, source, target)
    mirror_run.sync()
    assert_synced(source, target)
    assert 0 == target.counts()["POST mount"]
