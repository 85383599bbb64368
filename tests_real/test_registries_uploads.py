"""How registries of other makers take blobs, and what a user is told of what they refuse: `make test-registries`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RegistryFactory, ScriptedFactory
from tests.registries.exchange import Reply, Request, error_reply
from tests.registries.process import eventually
from tests.registries.real import RealRegistry
from tests.registries.wires import Pipe
from tests.support.images import OCI_INDEX, OCI_LAYER, Graph, oddly
from tests.support.oracle import assert_equal, skopeo_copy_to_dir
from tests.support.seeding import push
from tests.support.tool import MirrorTool
from tests_real.conftest import Starter
from tests_real.installed import Crane, Distribution, InstalledRegistry, OciRegistry

MIB = 1 << 20
RATE = 80.0 * MIB  # bytes a second, where a connection is to be cut in the middle of something
SIZES = (0, 1, 70_000, 12 * MIB)
USERS = {"acme": "secret-of-acme"}


def blobs(*sizes: int) -> Graph:
    """An image with layers of these sizes."""
    graph = Graph("blobs")
    pattern = bytes(range(251))
    layers = [graph.blob((pattern * (size // 251 + 1))[:size], OCI_LAYER) for size in sizes]
    graph.image("v1", layers=layers)
    return graph


def refuse(status: int, code: str, *, above: int = 0) -> Callable[[Request], Reply | None]:
    """The hook of a proxy that does not let a PUT of so many bytes pass."""

    def hook(request: Request) -> Reply | None:
        large = int(request.header("Content-Length") or 0) > above
        return error_reply(status, code) if request.kind == "PUT upload" and large else None

    return hook


def moved(pipe: Pipe, count: int) -> bool:
    """Wait until so many bytes have passed."""
    return eventually(lambda: pipe.moved > count, within=60)


def configure(tool: MirrorTool, source: Any, target: Any, **keys: Any) -> None:
    tool.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target, **keys)


def test_blobs_of_all_sizes_are_a_post_and_a_put(
    taker: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    graph = blobs(*SIZES, 90 * MIB)
    push(source, "app", graph)
    configure(mirror_run, source, taker)
    mirror_run.sync()
    assert_equal(source, "app", taker)
    asked = taker.journal.counts()
    assert (len(graph.blobs), len(graph.blobs), 0) == (asked["POST upload"], asked["PUT upload"], asked["PATCH upload"])


def test_behind_a_proxy_that_refuses_one_put_they_take_a_patch_and_a_put(
    taker: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    push(source, "app", blobs(*SIZES))
    taker.front.hook = refuse(405, "UNSUPPORTED")
    configure(mirror_run, source, taker)
    mirror_run.sync()
    assert_equal(source, "app", taker)
    assert taker.journal.counts(status=202)["PATCH upload"] >= len(SIZES) - 2, "the empty one needs none"


def test_behind_a_proxy_with_a_body_limit_they_take_chunks(
    taker: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool
) -> None:
    push(source, "app", blobs(100 * MIB))
    taker.front.hook = refuse(413, "TOO_LARGE", above=32 * MIB)
    configure(mirror_run, source, taker)
    mirror_run.sync()
    assert_equal(source, "app", taker)
    chunks = [entry.header("Content-Range") for entry in taker.journal.entries if entry.header("Content-Range")]
    ends = [32 * MIB, 64 * MIB, 96 * MIB, 100 * MIB]
    assert [f"{start}-{end - 1}" for start, end in zip([0, *ends], ends, strict=False)] == chunks


def test_a_large_upload_whose_connection_breaks_twice_arrives(
    taker: InstalledRegistry, source: RealRegistry, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    """First in the one PUT, then in the middle of a chunk: from there it is gone on with where the registry can."""
    push(source, "app", blobs(150 * MIB))
    with Pipe(taker.front.port, rate=RATE) as pipe:
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
        mirror_run.config(mirrors, source, pipe)
        process = mirror_run.start("sync", mirror_run.config_file)
        for most in (80 * MIB, 80 * MIB + 50 * MIB):
            assert moved(pipe, most)
            pipe.cut_connections()
        ran = mirror_run.finish(process)
    assert 0 == ran.code, ran
    assert_equal(source, "app", taker)
    asked = [entry for entry in taker.journal.entries if entry.kind in ("GET upload", "POST upload")]
    assert [400 if taker.forgets_uploads else 204] == [entry.status for entry in asked if entry.kind == "GET upload"]
    # The config's, the one that broke, and that of the chunks; where that is forgotten, one more.
    assert 3 + taker.forgets_uploads == sum(entry.kind == "POST upload" for entry in asked)


def test_a_download_whose_connection_breaks_is_gone_on_with(
    maker: type[InstalledRegistry], start: Starter, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    source = start(maker, "giver")
    push(source, "app", blobs(60 * MIB))
    with Pipe(source.front.port, rate=RATE) as pipe:
        mirrors = [{"source": f"{pipe.host}/app", "targets": [f"{target.host}/app"]}]
        mirror_run.config(mirrors, pipe, target)
        process = mirror_run.start("sync", mirror_run.config_file)
        assert moved(pipe, 30 * MIB)
        pipe.cut_connections()
        ran = mirror_run.finish(process)
    assert 0 == ran.code, ran
    assert_equal(source, "app", target)
    assert 1 == source.journal.counts(status=206)["GET blob"]


# ---- who may


def test_a_login_lets_in_and_a_wrong_one_is_told(start: Starter, mirror_run: MirrorTool, tmp_path: Path) -> None:
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


# ---- what is not taken


def refused(tool: MirrorTool, *, expect: int) -> tuple[str, str]:
    """A sync of which one image fails. -> its error's code, and what people are told"""
    ran = tool.sync(expect=expect)
    codes = [image["error"]["code"] for image in tool.report()["images"] if "error" in image]
    assert 1 == len(codes), ran
    return codes[0], ran.text


def test_schema_1_is_refused_with_the_setting_that_helps(
    taker: InstalledRegistry, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    source, graph = registry_factory("source", schema1=True), Graph("old")
    graph.schema1("v1", name="app", layers=[graph.layer("only", oci=False)])
    push(source, "app", graph)
    configure(mirror_run, source, taker)
    wanted = ("bad_response", 1) if isinstance(taker, Distribution) else ("target_lied", 3)
    code, text = refused(mirror_run, expect=wanted[1])
    assert wanted[0] == code
    assert "set `schema1: convert` for this mirror" in text
    if isinstance(taker, Distribution):
        assert "unsupported manifest media type" in text
    configure(mirror_run, source, taker, defaults={"schema1": "convert"})
    mirror_run.sync()
    with taker.client() as client:
        assert 2 == client.manifest("app", "v1").json()["schemaVersion"]
    taker.journal.mark()
    mirror_run.sync()
    assert [] == taker.journal.writes()


@pytest.mark.parametrize("maker", [Crane, OciRegistry])
def test_schema_1_from_a_registry_that_does_not_know_it_is_told_as_that(
    start: Starter, target: RealRegistry, mirror_run: MirrorTool, maker: type[InstalledRegistry]
) -> None:
    source, graph = start(maker, "giver"), Graph("old")
    graph.schema1("v1", name="app", layers=[graph.layer("only", oci=False)])
    push(source, "app", graph)
    configure(mirror_run, source, target)
    code, text = refused(mirror_run, expect=3)
    assert "digest_mismatch" == code
    assert "this registry does not know schema 1" in text


def windows(*, oci: bool) -> Graph:
    graph = Graph("windows")
    base = graph.foreign_layer("https://layers.invalid/base.tar.gz", oci=oci)
    graph.image("v1", layers=[base, graph.layer("own", oci=oci)], oci=oci)
    return graph


@pytest.mark.parametrize("oci", [True, False], ids=["oci", "docker"])
def test_layers_that_are_elsewhere_are_left_there_or_refused_with_a_hint(
    taker: InstalledRegistry, scripted: ScriptedFactory, mirror_run: MirrorTool, oci: bool
) -> None:
    source = scripted("source")
    source.load("app", windows(oci=oci))
    configure(mirror_run, source, taker)
    if isinstance(taker, Crane) or (isinstance(taker, OciRegistry) and not oci):
        mirror_run.sync()
        assert_equal(source, "app", taker)
    else:
        code, text = refused(mirror_run, expect=1)
        assert ("bad_response", True) == (code, "layers that are to be had elsewhere" in text)


@pytest.mark.parametrize("oci", [True, False], ids=["oci", "docker"])
def test_they_are_taken_where_the_registry_allows_their_urls(
    start: Starter, scripted: ScriptedFactory, mirror_run: MirrorTool, oci: bool
) -> None:
    settings = {"validation": {"manifests": {"urls": {"allow": ["^https://layers\\.invalid/"]}}}}
    source, target = scripted("source"), start(Distribution, "taker", settings=settings)
    source.load("app", windows(oci=oci))
    configure(mirror_run, source, target)
    mirror_run.sync()
    assert_equal(source, "app", target)


def test_a_manifest_that_is_too_large_for_a_target_is_told_as_that(
    start: Starter, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target, graph = scripted("source"), start(Distribution, "taker"), Graph("large")
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": {"x": "y" * 5_000_000}}
    graph.raw(oddly(document), OCI_INDEX, "v1")
    source.load("app", graph)
    configure(mirror_run, source, target)
    code, text = refused(mirror_run, expect=1)
    assert ("manifest_too_big", True) == (code, "too many for the target" in text)


def test_a_tag_that_a_target_keeps_is_a_conflict(start: Starter, source: RealRegistry, mirror_run: MirrorTool) -> None:
    target = start(OciRegistry, "taker", flags=("-immutable",))
    old, new = Graph("old"), Graph("new")
    for graph in (old, new):
        graph.platforms("v1")
    push(source, "app", old)
    configure(mirror_run, source, target)
    mirror_run.sync()
    push(source, "app", new)
    code, text = refused(mirror_run, expect=3)
    assert ("tag_immutable", True) == (code, "the target keeps tags immutable" in text)
    assert {"conflict"} == set(mirror_run.results().values())
    with target.client() as client:
        assert old.manifests[old.tags["v1"]].data == client.manifest("app", "v1").body
