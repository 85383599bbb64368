"""Uploads to registries of other makers, and the errors for content that they reject: `make test-registries`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.real import RealRegistry
from tests.registries.wires import Pipe
from tests.support.images import OCI_INDEX, OCI_LAYER, Graph, oddly
from tests.support.oracle import assert_equal, skopeo_copy_to_dir
from tests.support.seeding import push
from tests.support.tool import MirrorTool
from tests_real.conftest import Starter
from tests_real.installed import Crane, Distribution, InstalledRegistry, OciRegistry

MIB = 1 << 20
SIZES = (0, 1, 70_000, 12 * MIB)
USERS = {"acme": "secret-of-acme"}


def blobs(*sizes: int) -> Graph:
    """Return an image with layers of these sizes."""
    graph = Graph("blobs")
    pattern = bytes(range(251))
    layers = [graph.blob((pattern * (size // 251 + 1))[:size], OCI_LAYER) for size in sizes]
    graph.image("v1", layers=layers)
    return graph


def reject_bodies(status: int, code: str, *kinds: str, above: int = 0) -> Callable[[Request], Reply | None]:
    """Return a hook for the proxy that rejects requests of these kinds with more than `above` bytes."""

    def hook(request: Request) -> Reply | None:
        large = int(request.header("Content-Length") or 0) > above
        return error_reply(status, code) if request.kind in kinds and large else None

    return hook


def configure(tool: MirrorTool, source: Any, target: Any, **keys: Any) -> None:
    tool.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target, **keys)


def test_small_blobs_are_uploaded_by_a_post_and_a_put_and_one_of_90_mib_with_a_patch_before(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = blobs(*SIZES, 90 * MIB)
    push(source, "app", graph)
    configure(mirror_run, source, target_registry)
    mirror_run.sync()
    assert_equal(source, "app", target_registry)
    asked = target_registry.journal.counts()
    assert (len(graph.blobs), len(graph.blobs), 1) == (asked["POST upload"], asked["PUT upload"], asked["PATCH upload"])


def test_behind_a_proxy_that_rejects_a_single_put_a_patch_and_a_put_are_used(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    push(source, "app", blobs(*SIZES))
    target_registry.front.hook = reject_bodies(405, "UNSUPPORTED", "PUT upload")
    configure(mirror_run, source, target_registry)
    mirror_run.sync()
    assert_equal(source, "app", target_registry)
    assert target_registry.journal.counts(status=202)["PATCH upload"] >= len(SIZES) - 2, "the empty one needs none"


def test_behind_a_proxy_with_a_body_limit_chunks_stay_below_it(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    push(source, "app", blobs(100 * MIB))
    target_registry.front.hook = reject_bodies(413, "TOO_LARGE", "PATCH upload", "PUT upload", above=32 * MIB)
    configure(mirror_run, source, target_registry)
    mirror_run.sync()
    assert_equal(source, "app", target_registry)
    chunks = [
        entry.header("Content-Range")
        for entry in target_registry.journal.entries
        if entry.header("Content-Range") and entry.status != 413
    ]
    ends = [32 * MIB, 64 * MIB, 96 * MIB, 100 * MIB]
    # The rejected chunk ends the session of a registry that forgets its sessions: the first chunk is sent twice.
    again = ["0-33554431"] * target_registry.forgets_uploads
    assert again + [f"{start}-{end - 1}" for start, end in zip([0, *ends], ends, strict=False)] == chunks


def test_a_large_upload_survives_two_broken_connections(
    target_registry: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    """Both breaks are within chunks. The upload resumes if the registry supports it."""
    push(source, "app", blobs(150 * MIB))
    with Pipe(target_registry.front.port, cuts=(80 * MIB, 80 * MIB + 50 * MIB)) as pipe:
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
        mirror_run.config(mirrors, source, pipe)
        mirror_run.sync()
    assert_equal(source, "app", target_registry)
    asked = [entry for entry in target_registry.journal.entries if entry.kind in ("GET upload", "POST upload")]
    forgets = target_registry.forgets_uploads
    assert [400 if forgets else 204] * 2 == [entry.status for entry in asked if entry.kind == "GET upload"]
    # One for the config, one for the layer, and one for each break if the registry forgets its sessions.
    assert 2 + 2 * forgets == sum(entry.kind == "POST upload" for entry in asked)


def test_an_interrupted_download_is_resumed(
    maker: type[InstalledRegistry], start: Starter, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    source = start(maker, "giver")
    push(source, "app", blobs(60 * MIB))
    with Pipe(source.front.port, cuts=[30 * MIB]) as pipe:
        mirrors = [{"source": f"{pipe.host}/app", "targets": [f"{target.host}/app"]}]
        mirror_run.config(mirrors, pipe, target)
        mirror_run.sync()
    assert_equal(source, "app", target)
    assert 1 == source.journal.counts(status=206)["GET blob"]


# ---- credentials


def test_right_credentials_are_accepted_and_wrong_ones_reported(
    start: Starter, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    source, target = (start(Distribution, name, users=USERS) for name in ("giver", "taker"))
    push(source, "app", blobs(*SIZES))
    login = {"username": "acme", "password": {"env": "SECRET"}}
    configure(mirror_run, source, target, registries={source.host: login, target.host: login})
    ran = mirror_run.sync(expect=1, environment={"SECRET": "not-her-secret"})
    assert f"{source.host} does not accept user acme, password from env SECRET" in ran.text
    assert [] == target.journal.writes()
    mirror_run.sync(environment={"SECRET": USERS["acme"]})
    assert_equal(source, "app", target)
    skopeo_copy_to_dir(target, "app", "v1", tmp_path / "copy", credentials="acme:secret-of-acme")
    mirror_run.sweep("not-her-secret", USERS["acme"])


# ---- rejected content


def sync_rejected(tool: MirrorTool, *, expect: int) -> tuple[str, str]:
    """Run a sync in which one image fails; returns the code of its error, and the output for users."""
    ran = tool.sync(expect=expect)
    codes = [image["error"]["code"] for image in tool.report()["images"] if "error" in image]
    assert 1 == len(codes), ran
    return codes[0], ran.text


def test_a_rejected_schema1_manifest_has_a_hint_about_the_setting(
    target_registry: InstalledRegistry, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    source, graph = registry_factory("source", schema1=True), Graph("old")
    graph.schema1("v1", name="app", layers=[graph.layer("only", oci=False)])
    push(source, "app", graph)
    configure(mirror_run, source, target_registry)
    wanted = ("bad_response", 1) if isinstance(target_registry, Distribution) else ("target_lied", 3)
    code, text = sync_rejected(mirror_run, expect=wanted[1])
    assert wanted[0] == code
    assert "schema1: convert" in text
    if isinstance(target_registry, Distribution):
        assert "unsupported manifest media type" in text
    configure(mirror_run, source, target_registry, defaults={"schema1": "convert"})
    mirror_run.sync()
    with target_registry.client() as client:
        assert 2 == client.manifest("app", "v1").json()["schemaVersion"]
    target_registry.journal.mark()
    mirror_run.sync()
    assert [] == target_registry.journal.writes()


@pytest.mark.parametrize("maker", [Crane, OciRegistry])
def test_schema1_from_a_registry_without_support_has_a_hint(
    start: Starter, target: RealRegistry, mirror_run: MirrorTool, maker: type[InstalledRegistry]
) -> None:
    source, graph = start(maker, "giver"), Graph("old")
    graph.schema1("v1", name="app", layers=[graph.layer("only", oci=False)])
    push(source, "app", graph)
    configure(mirror_run, source, target)
    code, text = sync_rejected(mirror_run, expect=3)
    assert "digest_mismatch" == code
    assert "schema 1" in text


def windows(*, oci: bool) -> Graph:
    graph = Graph("windows")
    base = graph.foreign_layer("https://layers.invalid/base.tar.gz", oci=oci)
    graph.image("v1", layers=[base, graph.layer("own", oci=oci)], oci=oci)
    return graph


@pytest.mark.parametrize("oci", [True, False], ids=["oci", "docker"])
def test_non_distributable_layers_are_skipped_or_rejected_with_a_hint(
    target_registry: InstalledRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, oci: bool
) -> None:
    source = scripted("source")
    source.load("app", windows(oci=oci))
    configure(mirror_run, source, target_registry)
    if isinstance(target_registry, Crane) or (isinstance(target_registry, OciRegistry) and not oci):
        mirror_run.sync()
        assert_equal(source, "app", target_registry)
    else:
        code, text = sync_rejected(mirror_run, expect=1)
        assert ("bad_response", True) == (code, "non-distributable" in text)


@pytest.mark.parametrize("oci", [True, False], ids=["oci", "docker"])
def test_non_distributable_layers_are_accepted_if_the_registry_allows_their_urls(
    start: Starter, scripted: ScriptedFactory, mirror_run: MirrorTool, oci: bool
) -> None:
    settings = {"validation": {"manifests": {"urls": {"allow": ["^https://layers\\.invalid/"]}}}}
    source, target = scripted("source"), start(Distribution, "taker", settings=settings)
    source.load("app", windows(oci=oci))
    configure(mirror_run, source, target)
    mirror_run.sync()
    assert_equal(source, "app", target)


def test_a_manifest_that_is_too_large_for_a_target_has_its_own_error(
    start: Starter, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, graph = scripted("source"), start(Distribution, "taker"), Graph("large")
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"x": "y" * 5_000_000}}
    graph.raw(oddly(document), OCI_INDEX, "v1")
    source.load("app", graph)
    configure(mirror_run, source, target)
    code, text = sync_rejected(mirror_run, expect=1)
    assert ("manifest_too_big", True) == (code, "too large" in text)


def test_an_immutable_tag_of_a_target_is_a_conflict(
    start: Starter, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    target = start(OciRegistry, "taker", flags=("-immutable",))
    old, new = Graph("old"), Graph("new")
    for graph in (old, new):
        graph.platforms("v1")
    push(source, "app", old)
    configure(mirror_run, source, target)
    mirror_run.sync()
    push(source, "app", new)
    code, text = sync_rejected(mirror_run, expect=3)
    assert ("tag_immutable", True) == (code, "immutable" in text)
    assert {"conflict"} == set(mirror_run.results().values())
    with target.client() as client:
        assert old.manifests[old.tags["v1"]].data == client.manifest("app", "v1").body
